"""The tuning suite: shares are kept, rates are searched, an interrupted matrix goes on, gains are those of the records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lithe.bench.ledger import Ledger
from lithe.bench.tuning import _plan, _run, _suite
from lithe.bench.tuning._rows import forgets_at, rows
from lithe.bench.tuning._suite import Matrix
from lithe.cli import run
from lithe.errors import FormatError, UsageError
from lithe.model.load import load
from tests.cli.folders import spoken

PLAN = """
steps = 3
tokens = 60
context = 16
chosen_by = 60
held_out = 100
share = 0.5
curve = [0.2]
rates = [1e-3, 1e-2, 1e-1]
home = {name = "home", test = "home.txt"}
shift = [{name = "digits", train = "digits.jsonl", test = "digits.jsonl", text = "{a}={b}"},
         {name = "other", train = "home.txt", test = "home.txt"}]
method = [{name = "full", rate = 1e-2}, {name = "ranks", spec = "lora:rank={n}", rate = 1e-2},
          {name = "biases", spec = "bitfit", rate = 1e-1}]
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps({"a": n, "b": n * n}) + "\n" for n in range(200)))
    (tmp_path / "home.txt").write_text("once upon a time there was\n" * 60)
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.setenv("LITHE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Runs that cost nothing: the loss is a bowl around a rate of 1e-2."""
    ran = []

    def measured(cell, model, plan, found, home):
        ran.append(cell)
        off = abs(torch.tensor(cell.rate).log10().item() + 2)
        return {"trainable": 10, "values": 10, "chosen_by": 1 + off, "after": 1 + off, "home_after": 2.0, "seconds": 1.0,
                "cpu_seconds": 1.0, "step_seconds": 1.0, "tokens": 9,
                "bytes": {"gradients": 1, "optimizer": 2, "activations": 3}}

    monkeypatch.setattr(_suite, "run", measured)
    monkeypatch.setattr(_suite, "score", lambda model, examples: 3.0)
    return ran


def matrix(data, **changes):
    plan = replace(_plan.read(data / "plan.toml"), **changes)
    return Matrix(str(spoken()), plan, Ledger(data / "ledger.jsonl"))


def test_a_share_gives_the_largest_size_within_it(data):
    model = load(spoken(), fast=False)
    entry = _plan.read(data / "plan.toml").methods[1]
    for share in (0.05, 0.5):
        rank = int(_plan.sized(entry, share, model).rpartition("=")[2])
        one = sum(m.in_features + m.out_features for name, m in model.named_modules() if name.endswith("_proj"))
        assert rank * one <= share * model.size < (rank + 1) * one
    assert _plan.sized(entry, 1e-9, model) is None


def test_the_order_and_the_search(data, fake):
    suite = matrix(data)
    # All weights, each method on both shifts, and the other share on both.
    assert suite.run() == len(fake) == 3 * 2 + (3 + 1) + (3 + 2) + 2
    assert [(c.method, c.shift, c.rate) for c in fake[:7]] == [
        ("full", "digits", 1e-2), ("full", "digits", 1e-1), ("full", "digits", 1e-3),
        ("full", "other", 1e-2), ("full", "other", 1e-1), ("full", "other", 1e-3), ("ranks", "digits", 1e-2)]
    assert [c.method for c in fake[6:10]] == ["ranks", "ranks", "biases", "biases"]  # first all methods on all shifts
    assert [c.rate for c in fake if c.method == "biases" and c.shift == "digits"] == [1e-1, 1e-2, 1e-3]  # the grid ends above
    assert [c.rate for c in fake if c.method == "biases" and c.shift == "other"] == [1e-1, 1e-2]  # and then the best one
    assert [(c.shift, c.share) for c in fake][-3:-1] == [("digits", 0.2), ("other", None)] and fake[-1].share == 0.2
    row = next(r for r in rows(suite.known.values()) if (r.method, r.shift, r.share) == ("ranks", "digits", 0.5))
    assert (row.rate, row.rates, row.gain, row.forgets, row.beside) == (1e-2, 3, 1.0, -1.0, 6)


def test_an_interrupted_matrix_goes_on(data, fake):
    assert matrix(data).run(most=4) == 4
    rest = matrix(data).run()
    assert len(set(fake)) == len(fake) == 4 + rest
    assert matrix(data).run() == 0
    assert matrix(data, steps=4).run(most=1) == 1  # another plan's runs are others


def test_a_run_is_what_it_says(data):
    """A real one: it learns, only its own values move, and what cannot run is a record with its reason."""
    suite = matrix(data)
    full, ranks, biases = suite.plan.methods
    found = suite.measure(suite.cell(ranks, suite.plan.shifts[0], 0.5, 1e-2)).measured
    assert found["after"] < found["before"] and found["trainable"] < 0.5 * found["weights"]
    assert found["bytes"]["gradients"] == 4 * found["trainable"] and found["tokens"] > 0
    cell = suite.cell(biases, suite.plan.shifts[0], 0.5, 1e-2)
    broken = suite.measure(replace(cell, spec="bitfit:targets=nowhere")).measured
    assert "nowhere" in broken["error"] and "after" not in broken
    wild = suite.measure(suite.cell(full, suite.plan.shifts[0], 0.5, 1e30)).measured
    assert "at step" in wild["diverged"]
    assert _run.score(load(spoken(), dtype="float32", fast=False), suite._home) == pytest.approx(found["home_before"], rel=1e-6)


def test_the_verb(data, fake, capsys):
    words = ["bench", str(spoken()), "--suite", "tuning", "--plan", str(data / "plan.toml"), "--ledger", str(data / "l.jsonl")]
    assert run([*words, "--method", "biases", "--shift", "digits"]) == 0
    assert "biases" in capsys.readouterr().out and {c.method for c in fake} == {"full", "biases"}
    for more, said in (["--temperature", "1"], "no --temperature"), (["--method", "nosuch"], "no 'nosuch'"):
        assert run([*words, *more]) == UsageError.exit_code and said in capsys.readouterr().err
    assert run(["bench", str(spoken()), "--runs", "3"]) == UsageError.exit_code and "no --runs" in capsys.readouterr().err


def test_what_is_no_plan_is_told(data, monkeypatch):
    (data / "bad.toml").write_text("steps = 3")
    with pytest.raises(FormatError, match="is no plan"):
        _plan.read(data / "bad.toml")
    (data / "digits.jsonl").write_text("{}\n")
    with pytest.raises(FormatError, match="does not read as"):
        matrix(data).texts("digits")
    monkeypatch.setenv("LITHE_DATA", str(data / "nowhere"))
    with pytest.raises(UsageError, match=r"\$LITHE_DATA"):
        matrix(data)


def test_the_page_is_written_from_the_ledger(data, fake, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    import tuning as tool

    suite = matrix(data)
    suite.run()
    text = tool.page(suite.ledger.read())
    assert "## digits" in text and "| ranks |" in text and "| 100% |" in text
    assert tool.picture(rows(suite.ledger.read())).count("<polyline") == 2  # one method with two shares, on two shifts
    assert any("| ranks | 100%, -1.00 |" in part for part in tool.curve(rows(suite.ledger.read())))


def test_seeds_objectives_and_the_way_there(data):
    """A real run: an objective joins, files are found in the data folder, and both losses are looked at on the way."""
    suite = matrix(data, seeds=(0, 1), headline=("ranks",), every=1, searched=False)
    full, ranks, _ = suite.plan.methods
    assert suite.plan.lead == ("ranks",)
    spec = "lora:rank=1 + lemo:corpus={data}/home.txt,block=2,scores=exact,length=16"
    found = suite.measure(replace(suite.cell(ranks, suite.plan.shifts[0], 0.5, 1e-2), spec=spec)).measured
    assert [step for step, _, _ in found["path"]] == [1, 2, 3] and found["path"][-1][1] == found["after"]
    record = suite.measure(suite.cell(full, suite.plan.shifts[0], 0.5, 1e-2))
    (_, early, home), *_ = record.measured["path"]
    middle = (record.measured["before"] + early) / 2
    assert forgets_at(record, middle) == pytest.approx((home - record.measured["home_before"]) / 2)
    assert forgets_at(record, record.measured["before"] + 1) is None
