"""The compression suite: real runs on a small model, an interrupted matrix, and gains that are those of the records."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from lithe.bench.compress import _plan
from lithe.bench.compress._plan import Cell, cells
from lithe.bench.compress._rows import rows
from lithe.bench.compress._suite import Matrix
from lithe.bench.ledger import Ledger
from lithe.cli import run
from lithe.compress.mixture import parse
from lithe.contracts.small import decided
from lithe.errors import FormatError, UsageError
from lithe.model.checkpoint import save
from lithe.model.config import Config
from tests.cli.folders import spoken

PLAN = """
calibration = "text.jsonl"
held_out = "text.jsonl"
tokens = 64
length = 16
documents = 3
context = 12
seeds = [0, 1]
method = [{name = "size", steps = ["magnitude_pruning:unit=channel,ratio={x}"], ratios = [0.25, 0.5]},
          {name = "flow", steps = ["wanda_sp:unit=channel,ratio={x}"], ratios = [0.25, 0.5], against = "size"},
          {name = "wrong", steps = ["wanda_sp:unit=half,ratio=0.5"], models = ["plain"], seeds = [3]}]
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    lines = ["".join(chr(97 + (i * k) % 7) for i in range(40)) for k in range(1, 6)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "plan.toml").write_text(PLAN)
    save(decided(Config(vocab=257, width=32, layers=2, heads=2, kv_heads=2, ffn=64, context=64), 0, 3.0), tmp_path / "m",
         dtype=torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(spoken() / name, tmp_path / "m" / name)
    monkeypatch.setenv("LITHE_DATA", str(tmp_path))
    return tmp_path


def matrix(data, **changes):
    return Matrix(str(data / "m"), replace(_plan.read(data / "plan.toml"), **changes), Ledger(data / "ledger.jsonl"))


def test_a_matrix_runs_goes_on_and_tells_gains(data):
    suite = matrix(data)
    wanted = list(cells(suite.plan))
    assert len(wanted) == 2 + 2 * (2 * 2) * 2 + 1
    assert [c.seed for c in wanted[:11]] == [0] * 10 + [3]  # every method with its first seed before the others
    assert suite.run(5) == 5 and matrix(data).run() == len(wanted) - 5 and matrix(data).run() == 0
    suite = matrix(data)
    assert "known the units" not in str(suite.known) and "units" in suite.known[wanted[10]].measured["error"]
    found = {(row.method, row.ratio, row.on): row for row in rows(suite.known, suite.plan)}
    assert len(found) == 8 and all(row.seeds == 2 for row in found.values())
    dense = suite.known[wanted[0]].measured
    half = suite.known[Cell(method="size", steps="magnitude_pruning:unit=channel,ratio=0.5", ratio=0.5, on="plain", seed=1,
                            tokens=64)].measured
    assert len(half["nats"]) == 3 and half["tokens"] == [11, 11, 11]
    assert half["bytes"] < dense["bytes"]
    row = found["size", 0.5, "plain"]
    assert row.more == pytest.approx(half["loss"] - dense["loss"]) and row.gains is None  # magnitude draws nothing
    row, other = found["flow", 0.5, "plain"], found["size", 0.5, "plain"]
    assert row.gains == pytest.approx(other.more - row.more, abs=1e-5) and row.low <= row.gains <= row.high and row.same_bytes
    assert dense["kl"] < 1e-6 < half["kl"]
    twin = suite.known[wanted[1]].measured
    assert twin["loss"] == pytest.approx(dense["loss"], abs=1e-4)  # another scale, the same function


def test_another_text_or_size_is_run_anew(data):
    assert matrix(data).run(3) == 3
    assert next(iter(matrix(data, context=9).missing())).method == "dense"
    (data / "text.jsonl").write_text((data / "text.jsonl").read_text().replace("a", "z"))
    assert next(iter(matrix(data).missing())).method == "dense"


def test_the_verb_and_what_is_no_plan(data, capsys):
    words = ["bench", str(data / "m"), "--suite", "compress", "--plan", str(data / "plan.toml"), "--ledger",
             str(data / "l.jsonl")]
    assert run([*words, "--method", "flow", "--runs", "4"]) == 0
    assert "size" in capsys.readouterr().out
    assert run([*words, "--method", "nosuch"]) == UsageError.exit_code and "no 'nosuch'" in capsys.readouterr().err
    assert run([*words, "--shift", "x"]) == UsageError.exit_code
    for old, new, said in (('"size"}', '"nobody"}', "judged against"), ("ratio=0.5", "ratio={x}", "ratios and an"),
                           ('"plain"', '"third"', "not on third"), ('name = "flow"', 'name = "size"', "named twice")):
        (data / "bad.toml").write_text(PLAN.replace(old, new))
        with pytest.raises(FormatError, match=said):
            _plan.read(data / "bad.toml")


def test_the_shipped_plan_reads():
    for cell in cells(_plan.read()):
        for step in filter(None, cell.steps.split(" ; ")):
            assert parse(step).exact


def test_too_few_documents_are_told(data):
    with pytest.raises(FormatError, match="holds 5 documents"):
        matrix(data, documents=6)
