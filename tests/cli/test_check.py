"""`lithe check` runs the contract of a user's own file, and tells what breaks it. `lithe env` tells what all this ran on."""

import json
import re
from pathlib import Path

import pytest

from lithe.cli import run
from tests.cli.own import SOURCE

PROMISES = '("same_tokens",)'


@pytest.fixture
def check(tmp_path, capsys):
    """Check a changed copy of the user's method: the exit code and what each check said."""

    def go(old: str = "", new: str = "", promises: str = PROMISES) -> tuple[int, dict[str, str | None]]:
        assert old in SOURCE
        text = SOURCE.replace(PROMISES, promises)
        (tmp_path / "mine.py").write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
        code = run(["check", str(tmp_path / "mine.py"), "--json"])
        out = capsys.readouterr().out
        return code, {c["check"]: c["problem"] for c in json.loads(out)["checks"]} if out else {}

    return go


def test_a_good_method_keeps_its_contract(check):
    assert check() == (0, {"knobs": None, "same_tokens": None})


def test_the_example_in_the_architecture_page_keeps_its_contract(tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    (tmp_path / "my_draft.py").write_text(re.search(r'```python\n(""".*?)```', page, re.DOTALL)[1], encoding="utf-8")
    assert run(["check", str(tmp_path / "my_draft.py")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("old", "new", "said"), [
    ('knob(2, "how often', 'knob(9, "how often', "above 8"), ('"how often to say it"', '""', "tokens has no help"),
    ("frozen=True, ", "", "frozen=True"), (", kw_only=True", "", "kw_only"),
    ('knob(False, "whether to shout")', "False", "no help"),
    ("class Method", "class Methods", "no class Method"), ("class Knobs", "class Knops", "no dataclass Knobs")])  # fmt: skip
def test_knobs_that_break_the_form_are_told(check, old, new, said):
    code, problems = check(old, new, promises="()")
    assert code == 1
    assert said in problems["knobs"]


@pytest.mark.parametrize(("old", "new", "said"), [
    ("return [Tree.chain", "return undefined + [Tree.chain", "NameError"),
    ("def propose", "def suggest", "propose"),
    ("        pass", "        rounds[0].sequence.ids[-1] = 0", "differs"),  # a draft that meddles with the text
])  # fmt: skip
def test_a_broken_promise_is_told(check, old, new, said):
    code, problems = check(old, new)
    assert code == 1
    assert problems["knobs"] is None
    assert said in problems["same_tokens"]


@pytest.mark.parametrize(("new", "code", "said"), [
    ("decode/drafts", 2, "did you mean decode/draft"), ("decode", 2, "says where it belongs")])
def test_a_shelf_that_is_not_there_is_told(tmp_path, capsys, new, code, said):
    (tmp_path / "mine.py").write_text(SOURCE.replace("decode/draft", new))
    assert run(["check", str(tmp_path / "mine.py")]) == code
    assert said in capsys.readouterr().err


def test_a_promise_without_a_check_is_unsupported(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(SOURCE.replace('"same_tokens",', '"n_of_m",'))
    assert run(["check", str(tmp_path / "mine.py")]) == 3
    assert "no check for n_of_m" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told(capsys):
    assert run(["check", "./nowhere.py"]) == 2
    assert "nowhere.py" in capsys.readouterr().err


def test_env_tells_where_it_runs(capsys, monkeypatch):
    monkeypatch.setenv("LITHE_LEDGER", "elsewhere.jsonl")
    assert run(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ledger"] == "elsewhere.jsonl"
    assert facts["packages"]["torch"]
    assert facts["cores"] >= 1
    assert run(["env"]) == 0
    assert "torch" in capsys.readouterr().out
