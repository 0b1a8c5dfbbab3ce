"""A draft for any target: the stages, what they learn from, and a run that goes on."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from lithe.cli import run as lithe
from lithe.contracts.small import small_folder, small_model
from lithe.decode import drafter
from lithe.decode.drafter import Recipe, following, make, shape, spoken
from lithe.decode.loop import run
from lithe.decode.plan import plan, shapeable
from lithe.errors import UnsupportedError, UsageError
from lithe.model.config import Config
from lithe.model.load import load
from lithe.sampling.sequence import Sequence
from lithe.train.loop import Interrupted
from lithe.train.teacher import Teacher

IDS = np.random.default_rng(0).integers(0, 32, 1500)
QUICK = dict(layers=1, width=16, pretrain=8, align=60, written=4000, rows=8, length=32, rate=0.01, align_rate=0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafts") / "draft"
    target = load(small_folder(), dtype=torch.float32, fast=False)
    return target, make(target, IDS, Recipe(**QUICK), folder, quiet=True), folder


def tokens_per_pass(target, model):
    batch = [Sequence([i, 3 * i % 32], limit=30, context=64) for i in range(16)]
    passes = sum(1 for _ in run(plan(target, draft=f"{shapeable().entry.name}:tokens=3,model={model}"), batch))
    return sum(len(s.tokens) for s in batch) / passes


def test_an_aligned_draft_beats_one_that_read_the_text_alone(made, tmp_path):
    """The target is a random model, so the text says nothing of it: all there is to know lies in what it writes."""
    target, _, folder = made
    make(target, IDS, Recipe(**QUICK | {"pretrain": 68, "align": 0}), tmp_path / "unaligned", quiet=True)
    ours, theirs = (tokens_per_pass(target, where) for where in (folder, tmp_path / "unaligned"))
    assert ours > theirs + 0.1


def test_the_folder_says_how_it_came_to_be(made):
    _, draft, folder = made
    (receipt,) = json.loads((folder / "lithe.json").read_text())["receipts"]
    assert [stage["stage"] for stage in receipt["stages"]] == ["pretrain", "align"]
    assert [stage["tokens"] for stage in receipt["stages"]] == [8 * 8 * 31, 60 * 8 * 31]
    assert receipt["stages"][0]["text"] == receipt["text"] != receipt["stages"][1]["text"]
    assert load(folder).config == draft.config


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(made, tmp_path, monkeypatch):
    target, draft, _ = made
    batch = Teacher.batch

    def stopping(self, numbers):
        if self.windows(5) == numbers and not list(tmp_path.rglob("align/step-*")) and list(tmp_path.rglob("pretrain/step-*8")):
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, numbers)

    monkeypatch.setattr(Teacher, "batch", stopping)
    again = tmp_path / "again"
    with pytest.raises(Interrupted):
        make(target, IDS, Recipe(**QUICK), again, quiet=True)
    assert not again.exists()
    monkeypatch.setattr(drafter, "write", None)  # the text it wrote was kept
    other = make(target, IDS, Recipe(**QUICK), again, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(draft.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(UsageError, match="not empty"):
        make(target, IDS, Recipe(**QUICK), again, quiet=True)


def test_its_shape_is_the_targets_family_made_small():
    big = Config(vocab=64, width=256, layers=8, heads=8, kv_heads=4, ffn=704, context=128, window=16, qkv_bias=True)
    small = shape(big, 2, 64)
    assert (small.layers, small.width, small.heads, small.kv_heads, small.head_dim, small.ffn) == (2, 64, 2, 1, 32, 192)
    assert (small.vocab, small.context, small.window, small.qkv_bias, small.tied) == (64, 128, 16, True, True)
    with pytest.raises(UsageError, match="whole number"):
        shape(big, 2, 40)


def test_what_it_starts_from_can_learn():
    """A model that is loaded to run has packed weights, which cannot."""
    draft = drafter.begin(load("zoo:tiny-draft"), Recipe(start="zoo:tiny-draft"))
    assert draft.fast is None and draft.dtype == torch.float32 and all(w.requires_grad for w in draft.parameters())


def test_the_targets_law_can_be_learned_beside_its_tokens():
    model = small_model()
    ids_BT = torch.arange(10)[None]
    logits = model(ids_BT, logits="all").scores.float()
    batch = {"ids_BT": ids_BT, "logits": logits}
    alone, tokens = following(model, batch)
    assert tokens == 9 and following(model, batch, 0.5)[0].item() == pytest.approx(alone.item() / 2, rel=1e-5)  # no distance
    assert following(small_model(seed=1), batch, 1.0)[0] > 1


def test_a_fifth_of_what_it_writes_while_warm_follows_nothing(monkeypatch, tmp_path):
    asked = []

    def write(target, ids, tokens, *, temperature, seed, opening=(), quiet):
        asked.append((temperature, bool(opening), tokens))
        return np.zeros(tokens, np.int32)

    monkeypatch.setattr(drafter, "write", write)
    target = small_model()
    target.tokenizer = type("", (), {"eos_ids": {0}})()
    try:
        spoken(target, IDS, Recipe(**QUICK), tmp_path, {"target": "", "text": ""}, True)
    finally:
        target.tokenizer = None
    assert asked == [(0.0, False, 1000), (0.6, False, 800), (0.6, True, 200), (0.8, False, 800), (0.8, True, 200),
                     (1.0, False, 800), (1.0, True, 200)]


def test_what_cannot_be_is_told(tmp_path, capsys):
    for wrong in ({"law": 2.0}, {"pretrain": 0}, {"layers": 0}, {"written": 0}):
        with pytest.raises(UsageError):
            Recipe(**QUICK | wrong)
    target = small_model()
    with pytest.raises(UnsupportedError, match="cannot draft"):
        make(target, IDS, Recipe(**QUICK | {"start": str(small_folder(vocab=16))}), tmp_path / "d", quiet=True)
    np.save(tmp_path / "text.npy", IDS)
    words = ["draft", str(small_folder()), "--data", str(tmp_path / "text.npy"), "-o", str(tmp_path / "d")]
    assert lithe([*words, "--width", "15"]) == UsageError.exit_code
    steps = ["--pretrain", "3", "--align", "3", "--written", "500", "--rows", "2", "--length", "16"]
    assert lithe([*words, "--layers", "1", "--width", "16", *steps, "--json"]) == 0
    assert [stage["steps"] for stage in json.loads(capsys.readouterr().out)["stages"]] == [3, 3]
