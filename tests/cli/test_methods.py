"""Looking methods up: list, search, show; and the command line that carries every verb."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest

from lithe import cli, papers, registry
from lithe.card import PROMISES
from lithe.cli import run
from lithe.cli._common import table
from lithe.cli.show import use
from tests.cli.own import SOURCE

ENTRIES = registry.entries()
NAMES = [e.name for e in ENTRIES]
NUMBERED = next(e for e in ENTRIES if e.room == "decode" and e.card.row is not None and NAMES.count(e.name) == 1)
PLANNED = next(p for p in papers.papers().values() if p.status == "planned" and not any(e.card.row == p.row for e in ENTRIES))
FIELDS = {"name", "room", "shelf", "row", "promises", "needs", "trains", "summary", "status", "lossless"}


def listed(capsys, *words: str) -> list[dict]:
    assert run(["methods", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def told(capsys, *words: str) -> tuple[int, str]:
    """The exit code and what stderr says; stdout must stay clean and no traceback may show."""
    code = run(list(words))
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return code, err


def test_json_gives_every_method_with_its_fields(capsys):
    rows = listed(capsys)
    assert [f"{r['room']}/{r['shelf']}/{r['name']}" for r in rows] == [e.address for e in ENTRIES]
    assert all(set(row) == FIELDS for row in rows)
    row = next(r for r in rows if r["name"] == NUMBERED.name)
    assert row["status"] == papers.papers()[NUMBERED.card.row].status
    assert row["lossless"] == NUMBERED.card.lossless


def test_filters_agree_with_the_cards(capsys):
    for entry in ENTRIES:
        assert entry.name in {r["name"] for r in listed(capsys, "--room", entry.room, "--shelf", entry.shelf)}
    for promise in PROMISES:
        names = {r["name"] for r in listed(capsys, "--promise", promise)}
        assert names == {e.name for e in ENTRIES if promise in e.card.promises}
    words = re.findall(r"\w+", NUMBERED.card.paper)[:3]
    assert NUMBERED.name in {r["name"] for r in listed(capsys, *words, NUMBERED.name.upper())}
    assert listed(capsys, "no such words anywhere") == []


def test_the_table_says_what_is_not_lossless(capsys, monkeypatch):
    lossy = dataclasses.replace(ENTRIES[0], name="lossy", card=dataclasses.replace(ENTRIES[0].card, promises=()))
    monkeypatch.setattr(registry, "_all", lambda: (*ENTRIES, lossy))
    assert run(["methods"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    column = head.split().index("lossless")
    assert len(lines) == len(ENTRIES) + 1
    cells = {line.split()[0]: re.split(r"\s{2,}", line) for line in lines}
    assert "no" in cells["lossy"]
    assert column > 0
    assert "\x1b" not in head  # plain where it is no terminal


@pytest.mark.parametrize(("columns", "colour", "expected"), [
    (30, True, "\x1b[1mname  text\x1b[0m\na     " + "x" * 23 + "…\n"), (30, False, "name  text\na     " + "x" * 23 + "…\n"),
    (20, False, "name  text\na     " + "x" * 40 + "\n")])  # too narrow to cut: left whole
def test_a_table_fits_the_terminal(capsys, monkeypatch, columns, colour, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "" if colour else "1")
    table(("name", "text"), [("a", "x" * 40)])
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("words", "said"), [
    (["--promise", "same_tokns"], "did you mean same_tokens"), (["--room", "decod"], "did you mean decode"),
    (["--shelf", "drafts"], "did you mean draft")])  # fmt: skip
def test_unknown_filters_are_told_with_near_ones(capsys, words, said):
    code, err = told(capsys, "methods", *words)
    assert code == 2
    assert said in err


@pytest.mark.parametrize("name", [NUMBERED.name, NUMBERED.address, str(NUMBERED.card.row), papers.paper(NUMBERED.card.row).id])
def test_show_finds_a_method_by_every_name(capsys, name):
    assert run(["show", name]) == 0
    out = capsys.readouterr().out
    assert NUMBERED.address in out
    assert f"--method {NUMBERED.name}" in out
    for promise in NUMBERED.card.promises:
        assert PROMISES[promise] in out
    assert papers.papers()[NUMBERED.card.row].paper_figure in out


@pytest.mark.parametrize("room", sorted({e.room for e in ENTRIES}))
def test_every_method_says_how_it_is_run(room):
    for entry in (e for e in ENTRIES if e.room == room):
        said = use(entry)
        assert said and (entry.name in said or entry.card.takes), entry.address  # the greedy rule is a plan's own


def test_show_json_holds_knobs_with_ranges(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    assert run(["show", str(tmp_path / "mine.py"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["paper"] is None
    method = shown["methods"][0]
    assert set(method) > FIELDS
    assert method["doc"] == "Guess that the last word is said again."
    assert method["use"].endswith(f"--method {tmp_path / 'mine.py'}")
    knobs = {knob["name"]: knob for knob in method["knobs"]}
    assert knobs["tokens"] == {"name": "tokens", "type": "int", "default": 2, "low": 1, "high": 8, "choices": [],
                               "help": "how often to say it"}  # fmt: skip
    assert knobs["mode"]["choices"] == ["one", "two"]


@pytest.mark.parametrize("name", [str(PLANNED.row), PLANNED.id])
def test_show_says_what_is_only_planned(capsys, name):
    assert run(["show", name]) == 0
    out = capsys.readouterr().out
    assert "planned: nothing is built yet" in out
    assert PLANNED.title in out


@pytest.mark.parametrize("name", [f"{NUMBERED.name}x", f"{PLANNED.id}x", "9999"])
def test_show_tells_near_names(capsys, name):
    code, err = told(capsys, "show", name)
    assert code == 2
    assert name[:-1] in err


def test_every_method_can_be_shown(capsys):
    for entry in ENTRIES:
        assert run(["show", entry.address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["methods"][0]["name"] == entry.name


def test_overview_lists_every_verb_by_its_first_line(capsys):
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in cli.verbs():
        assert re.search(rf"^  {verb} +\S", out, re.MULTILINE), verb
    assert run(["--version"]) == 0
    assert re.fullmatch(r"lithe \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_no_verb_and_unknown_verbs_are_usage_errors(capsys):
    assert told(capsys)[0] == 2
    code, err = told(capsys, "method")
    assert code == 2
    assert err == "lithe: there is no verb 'method'; did you mean methods?\n"
    code, err = told(capsys, "methods", "--romm", "decode")
    assert code == 2
    assert "--room" in err
    assert told(capsys, "show")[0] == 2


@pytest.mark.parametrize(("body", "code", "said"), [
    ("raise KeyboardInterrupt", 130, "interrupted"), ("raise errors.UsageError('u')", 2, "u"),
    ("raise errors.UnsupportedError('n')", 3, "n"), ("raise errors.FormatError('f')", 4, "f"),
    ("raise errors.TooLargeError('t')", 5, "t"), ("raise MemoryError", 5, "out of memory"),
    ("open('/nowhere/x')", 1, "/nowhere/x"),
    ("raise RuntimeError('CUDA out of memory')", 5, "out of memory"), ("return 7", 7, ""), ("raise typer.Exit(3)", 3, ""),
    ("pass", 0, "")])  # fmt: skip
def test_exit_codes(capsys, monkeypatch, tmp_path, body, code, said):
    head = '"""Falls."""\n\nimport typer\n\nfrom lithe import errors\n\n\ndef command():\n    '
    (tmp_path / "fall.py").write_text(f"{head}{body}\n")
    monkeypatch.setattr(cli, "FOLDER", tmp_path)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "lithe.cli.fall", raising=False)
    got, err = told(capsys, "fall")
    assert got == code
    assert said in err
    assert err == "" or err.startswith("lithe: ")


def test_a_closed_pipe_is_quiet():
    """As in `lithe methods | head -0`: the reader is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "lithe", "methods"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == cli.PIPE_CLOSED
    assert done.stderr == ""
