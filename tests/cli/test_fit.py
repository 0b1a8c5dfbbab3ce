"""`lithe fit`: from a model and a text to weights that draft for it."""

import json
from pathlib import Path

import numpy as np
import pytest

from lithe.cli import run
from lithe.contracts.small import small_folder
from lithe.errors import FormatError, UnsupportedError, UsageError

OWN = Path(__file__).parents[1] / "train" / "own_heads.py"
QUICK = ("--steps", "4", "--rows", "2", "--length", "16")


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "text.npy", np.random.default_rng(0).integers(0, 32, 600))
    return tmp_path / "text.npy"


def fit(*words):
    return run(["fit", str(small_folder()), "--method", str(OWN), *map(str, words)])


def test_what_it_makes_drafts_for_the_model(tmp_path, data, capsys):
    assert fit("--data", data, "-o", tmp_path / "heads", *QUICK, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path / "heads") and len(told["rates"][0]) == 10 and told["weights"] == 32 * 32
    words = ["--method", f"{OWN}:wide=true", "--data", str(data), "-o", str(tmp_path / "b"), *QUICK]
    assert run(["fit", str(small_folder()), *words]) == 0
    out = capsys.readouterr()
    assert "own_heads" in out.out and "right at depth 1" in out.out and "step 4" in out.err

    from lithe.decode.loop import run as decode
    from lithe.decode.plan import plan
    from lithe.model.load import load
    from lithe.sampling.sequence import Sequence

    model = load(small_folder())
    texts = []
    for draft in (None, f"{OWN}:heads={tmp_path / 'heads'}"):
        sequence = Sequence([1, 2, 3], limit=20, context=64)
        list(decode(plan(model, draft=draft), [sequence]))
        texts.append(sequence.tokens)
    assert texts[0] == texts[1]


def test_it_can_learn_from_what_the_model_writes(tmp_path, data, capsys):
    words = ("--data", data, "-o", tmp_path / "heads", *QUICK, "--written", 200, "--keep")
    assert fit(*words) == 0
    (beside,) = tmp_path.glob("heads.written-*.npy")
    assert len(np.load(beside)) >= 200
    assert "written" in capsys.readouterr().err
    assert fit(*words) == UsageError.exit_code  # the folder holds its result


def test_what_cannot_be_is_told(tmp_path, data, capsys):
    model, short = str(small_folder()), tmp_path / "short.npy"
    np.save(short, np.arange(30))
    for words, code, says in (
        (["--method", "prompt_lookup", "--data", str(data)], UsageError.exit_code, "has no weights to fit"),
        (["--method", str(OWN), "--data", str(tmp_path / "none.npy")], UsageError.exit_code, "no corpus"),
        (["--method", str(OWN), "--data", str(OWN)], UnsupportedError.exit_code, "no tokenizer"),
        (["--method", str(OWN), "--data", str(short)], FormatError.exit_code, "too few"),
    ):
        assert run(["fit", model, *words, "-o", str(tmp_path / "x")]) == code
        assert says in capsys.readouterr().err
