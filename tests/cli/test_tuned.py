"""What came of tuning is a model like any other: it decodes, drafts, packs, is scored, and is tuned again."""

import json

import pytest
import torch

from lithe.cli import run
from lithe.model.checkpoint import load
from tests.cli.folders import spoken

TEXT = "7 xyz"  # every step of it is taught: what is not depends on the processor's last bits


@pytest.fixture
def go(tmp_path, capsys):
    rows = [{"text": f"{n} xyz"} for n in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text(TEXT)

    def verb(*words, code=0):
        found = run([*map(str, words)])
        told = capsys.readouterr()
        assert found == code, told.err
        return told.out if code == 0 else told.err

    return verb


@pytest.fixture
def tune(go, tmp_path):
    def made(model, out, *words, code=0):
        told = go("tune", model, "--data", tmp_path / "data.jsonl", "-o", tmp_path / out, "--batch-tokens", "60",
                  "--lr", "2e-3", "--steps", "24", "--json", *words, code=code)
        return tmp_path / out if code == 0 else told

    return made


@pytest.fixture
def loss(go, tmp_path):
    return lambda model, *words: json.loads(go("eval", model, tmp_path / "text.txt", "--no-ledger", "--json", *words))["nll"]


def said(go, model, *words):
    return json.loads(go("generate", model, "7 ", "--max-tokens", "6", "--json", *words))["tokens"]


def test_all_weights(go, tune, loss, tmp_path):
    out = tune(spoken(), "full")
    assert loss(out) < loss(spoken()) - 1
    assert said(go, out) != said(go, spoken()) and said(go, out, "--method", "token_recycling") == said(go, out)
    go("convert", out, tmp_path / "packed", "--dtype", "int8")
    assert abs(loss(tmp_path / "packed") - loss(out)) < 0.1 * (loss(spoken()) - loss(out))
    assert said(go, tmp_path / "packed") == said(go, out)
    go("delta", "pack", spoken(), out, "-o", tmp_path / "delta")
    go("delta", "apply", spoken(), tmp_path / "delta", "-o", tmp_path / "back")
    assert loss(tmp_path / "back") == loss(out)
    assert loss(tune(out, "again")) < loss(out), "a tuned model is tuned further"


@pytest.mark.parametrize("method", ["lora:rank=4", "spiel:density=0.05,every=4,look=1", "s2ft:share=0.2"])
def test_an_adapter_and_what_it_is_merged_into(go, tune, loss, tmp_path, method):
    few = method.startswith("spiel")  # weights, which move more
    out = tune(spoken(), "a", "--method", method, "--lr", "2e-2" if few else "2e-3")
    beside, tokens = loss(spoken(), "--adapter", out), said(go, spoken(), "--adapter", out)
    assert beside < loss(spoken()) - 0.1
    assert said(go, spoken(), "--adapter", out, "--method", "token_recycling") == tokens
    go("convert", spoken(), tmp_path / "merged", "--adapter", out)
    assert loss(tmp_path / "merged") == pytest.approx(beside, abs=1e-4) and said(go, tmp_path / "merged") == tokens
    receipts = json.loads((tmp_path / "merged" / "lithe.json").read_text())["receipts"]
    assert receipts[-1]["verb"] == "merge" and receipts[-1]["method"].startswith("tune/")
    go("convert", tmp_path / "merged", tmp_path / "packed", "--dtype", "int8")
    assert loss(tmp_path / "packed") == pytest.approx(beside, abs=0.05)
    assert "made for other weights" in go("eval", tmp_path / "merged", tmp_path / "text.txt", "--no-ledger", "--adapter", out,
                                          code=4)


def test_a_packed_base(go, tune, loss, tmp_path):
    go("convert", spoken(), tmp_path / "int8", "--dtype", "int8")
    out = tune(tmp_path / "int8", "a", "--method", "lora:rank=4")
    assert loss(tmp_path / "int8", "--adapter", out) < loss(tmp_path / "int8") - 0.1
    assert len(said(go, tmp_path / "int8", "--adapter", out)) == 6
    assert "is packed in whole numbers" in tune(tmp_path / "int8", "full", code=3)
    assert not (tmp_path / "full").exists()
    assert "int8" in go("convert", tmp_path / "int8", tmp_path / "merged", "--adapter", out, code=3)


def test_a_pruned_base(go, tune, loss, tmp_path):
    """Zeros of a base stay where a low-rank change is beside it, and what prunes while it tunes goes on from there."""
    first = tune(spoken(), "first", "--method", "pst:sparsity=0.5,rank=2,score_rank=2,targets=up_proj")
    go("convert", spoken(), tmp_path / "pruned", "--adapter", first)
    zeros = lambda folder: (load(folder).get_parameter("layers.0.mlp.up_proj.weight") == 0).double().mean().item()
    assert zeros(tmp_path / "pruned") == pytest.approx(0.5, abs=0.01)
    second = tune(tmp_path / "pruned", "second", "--method", "lora:rank=4,targets=q_proj+v_proj+o_proj+gate_proj+down_proj")
    assert loss(tmp_path / "pruned", "--adapter", second) < loss(tmp_path / "pruned") - 0.05
    go("convert", tmp_path / "pruned", tmp_path / "both", "--adapter", second)
    assert zeros(tmp_path / "both") == zeros(tmp_path / "pruned")
    assert torch.equal(load(tmp_path / "both").embed_tokens.weight, load(spoken()).embed_tokens.weight)


@pytest.mark.parametrize("method", ["magnitude_pruning:unit=head,ratio=0.5", "svd:ratio=0.6", "rtn:bits=8"])
def test_a_compressed_base(go, tune, loss, tmp_path, method):
    """Smaller layers, products of two and whole numbers: each is tuned beside, and drafts change nothing."""
    go("compress", spoken(), "--method", method, "-o", tmp_path / "small")
    out = tune(tmp_path / "small", "a", "--method", "lora:rank=4")
    assert loss(tmp_path / "small", "--adapter", out) < loss(tmp_path / "small") - 0.1
    tokens = said(go, tmp_path / "small", "--adapter", out)
    assert said(go, tmp_path / "small", "--adapter", out, "--method", "token_recycling") == tokens
    assert "made for other weights" in go("generate", spoken(), "7 ", "--adapter", out, code=4)


def test_errors_that_a_folder_can_hold(go, tune, tmp_path):
    """An adapter of another base, an adapter that was cut short, and no rows: told, and nothing is written."""
    out = tune(spoken(), "a", "--method", "lora:rank=2")
    other = tune(spoken(), "other")
    assert "made for other weights" in go("generate", other, "7 ", "--adapter", out, code=4)
    weights = out / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    go("generate", spoken(), "7 ", "--adapter", out, code=4)
    (tmp_path / "data.jsonl").write_text("")
    assert "no rows" in tune(spoken(), "none", code=4) and not (tmp_path / "none").exists()
