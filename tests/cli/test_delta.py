"""`lithe delta` from end to end: pack with a chosen knob, show, apply, merge, and how much of a gain is left."""

import json

import pytest
import torch

from lithe.cli import run
from lithe.model.checkpoint import load, save
from tests.cli.folders import spoken


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two models that were moved by noise and, one further than the other, away from what the base says."""
    place = tmp_path_factory.mktemp("tuned")
    for number, name in enumerate(("one", "two")):
        model, dice = load(spoken()), torch.Generator().manual_seed(number)
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5 + number)
            model.lm_head.weight.add_(0.02 * torch.randn(model.lm_head.weight.shape, generator=dice))
        save(model, place / name, tokenizer_from=spoken())
    (place / "text.txt").write_text("aé€😀 aé€😀 a")
    return place


@pytest.fixture
def delta(capsys):
    def go(*words):
        code = run(["delta", *map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return go


def test_pack_chooses_shows_and_applies(delta, tuned, tmp_path):
    words = ("--method", "compeft", "--valid", tuned / "text.txt", "--json")
    code, out, err = delta("pack", spoken(), tuned / "two", "-o", tmp_path / "d", *words)
    assert code == 0, err
    told = json.loads(out)
    assert [name for name, _ in told["tried"]] == [f"compeft:alpha={a}" for a in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)]
    best = min(told["tried"], key=lambda pair: pair[1])[0]
    assert told["methods"] == [f"tune/delta/{best}"]
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "d").iterdir())
    code, out, _ = delta("show", tmp_path / "d", tmp_path / "d")
    assert code == 0 and "bits a value" in out and "+1.0000  +1.0000" in out
    code, out, _ = delta("apply", spoken(), tmp_path / "d", "-o", tmp_path / "out")
    assert code == 0 and run(["generate", str(tmp_path / "out"), "a", "--max-tokens", "3"]) == 0


def test_unlabelled_text_chooses_by_the_last_states(delta, tuned, tmp_path):
    code, out, err = delta("pack", spoken(), tuned / "one", "-o", tmp_path / "d", "--method", "darex:drop=0.9,whole=norm",
                           "--unlabelled", tuned / "text.txt", "--json")
    assert code == 0, err
    assert len(json.loads(out)["tried"]) == 10 and json.loads(out)["forms"]["drawn"]["tensors"] >= 1


def test_eval_tells_what_is_kept_and_how_it_varies(delta, tuned):
    code, out, err = delta("eval", spoken(), tuned / "two", "--text", tuned / "text.txt", "--method", "dare:drop=0.5",
                           "--seeds", "3", "--json")
    assert code == 0, err
    told = json.loads(out)
    (row,) = told["rows"]
    assert len(set(row["losses"])) == 3 and row["deviation"] > 0 and row["bytes"] > 0
    assert row["kept"] == pytest.approx((told["loss"] - row["mean"]) / (told["loss"] - row["loss"]))
    code, out, _ = delta("eval", spoken(), tuned / "two", "--text", tuned / "text.txt", "--method", "dare:drop=0.5")
    assert code == 0 and "± " in out and "over 3 seeds" in out


def test_merge_writes_an_ordinary_folder(delta, tuned, tmp_path):
    code, _, err = delta("merge", spoken(), tuned / "one", tuned / "two", "-o", tmp_path / "m", "--method", "ties",
                         "--valid", tuned / "text.txt")
    assert code == 0, err
    receipt = json.loads((tmp_path / "m" / "lithe.json").read_text())["receipts"][-1]
    assert receipt["verb"] == "delta" and "ties:scale=" in receipt["method"]
    assert run(["eval", str(tmp_path / "m"), str(tuned / "text.txt"), "--no-ledger"]) == 0
