"""Steps of examples: every example once an epoch, and neither layout, split nor number of processes changes a step."""

import numpy as np
import pytest
import torch

from lithe.errors import UsageError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.batches import IGNORED
from lithe.train.feed import Feed, pack
from lithe.train.loss import Chunked, next_token
from lithe.train.text import of_ids

SMALL = Config(vocab=64, width=16, layers=2, heads=2, kv_heads=1, ffn=32, context=32, tied=True, window=8,
               windowed=(True, False))  # a window must be measured within a document


@pytest.fixture(scope="module")
def examples():
    dice = np.random.default_rng(0)
    return of_ids((dice.integers(0, 64, n), dice.random(n) < 0.7) for n in dice.integers(2, 30, 50))


def gradient(examples, loss=next_token, model=None, step=1, **settings):
    """Loss sum, tokens and gradient of a step, all its parts and processes together."""
    model = model or Decoder(SMALL).init(0).double()
    model.zero_grad()
    processes, total, tokens = settings.get("processes", 1), 0.0, 0
    for rank in range(processes):
        feed = Feed(examples=examples, context=30, **{"tokens": 200, "seed": 3, "rank": rank, **settings})
        for batch in feed(step):
            summed, counted = loss(model, batch)
            summed.backward()
            total, tokens = total + summed.item(), tokens + int(counted)
    return total, tokens, torch.cat([w.grad.flatten() for w in model.parameters()])


@pytest.mark.parametrize("settings", [
    {"packing": False}, {"micro": 60}, {"packing": False, "micro": 60}, {"processes": 2}, {"processes": 3, "packing": False},
    {"processes": 7, "micro": 40}, {"loss": Chunked(rows=7)}, {"loss": Chunked(rows=7), "packing": False, "processes": 2},
])  # fmt: skip
def test_the_layout_of_a_step_changes_neither_loss_nor_gradient(examples, settings):
    plain, other = gradient(examples), gradient(examples, **settings)
    assert other[1] == plain[1] > 50
    assert other[0] == pytest.approx(plain[0], rel=1e-12)
    torch.testing.assert_close(other[2], plain[2], rtol=1e-9, atol=1e-10)


def test_a_step_is_its_examples_one_by_one(examples):
    """The oracle: each example alone in a pass."""
    model = Decoder(SMALL).init(0).double()
    total, tokens, grad = gradient(examples)
    model.zero_grad()
    alone = 0.0
    for i in Feed(examples=examples, tokens=200, context=30, seed=3).chosen(1):
        ids, counted = (torch.tensor(part) for part in examples[i])
        logits = model(ids[None, :-1].long(), logits="all").logits[0]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")
        losses[counted[1:]].sum().backward()
        alone, tokens = alone + losses[counted[1:]].sum().item(), tokens - int(counted[1:].sum())
    assert tokens == 0
    assert total == pytest.approx(alone, rel=1e-12)
    torch.testing.assert_close(grad, torch.cat([w.grad.flatten() for w in model.parameters()]), rtol=1e-9, atol=1e-10)


def test_bucketed_steps_give_the_loss_of_their_examples(examples):
    """Buckets choose other steps; laid out in another way these too are the same."""
    one, two = (gradient(examples, packing=False, bins=4, micro=micro) for micro in (None, 20))
    assert one[:2] == pytest.approx(two[:2], rel=1e-12)
    torch.testing.assert_close(one[2], two[2], rtol=1e-9, atol=1e-10)


def test_without_document_numbers_the_packed_loss_is_another(examples):
    """The control: examples that see each other."""
    def leaky(model, batch):
        return next_token(model, {name: batch[name] for name in ("ids_BT", "targets_BT")})

    assert abs(gradient(examples)[0] - gradient(examples, loss=leaky)[0]) > 1e-4


@pytest.mark.parametrize("settings", [{}, {"packing": False}, {"packing": False, "bins": 4}])
def test_an_epoch_has_every_example_once_within_the_budget(examples, settings):
    feed = Feed(examples=examples, tokens=64, context=30, **settings)
    for epoch in range(3):
        steps = [feed.chosen(step) for step in range(feed.steps(epoch), feed.steps(epoch + 1))]
        assert sorted(np.concatenate(steps)) == list(range(len(examples)))
        assert all(examples.lengths[step].sum() <= 64 for step in steps)
    first, second = (np.concatenate([feed.chosen(s) for s in range(feed.steps(e), feed.steps(e + 1))]) for e in (0, 1))
    assert list(first) != list(second)
    again = Feed(examples=examples, tokens=64, context=30, **settings)  # a resumed run, in the middle of the third epoch
    step = feed.steps(2) + 3
    assert all(torch.equal(a["ids_BT"], b["ids_BT"]) for a, b in zip(again(step), feed(step), strict=True))


def test_rows_are_packed_tightly_and_padded_to_the_longest_only(examples):
    rows = pack(np.array([5, 9, 1, 4, 6]), 10)
    assert sorted(map(sorted, rows)) == [[0], [1, 2], [3, 4]]
    batches = Feed(examples=examples, tokens=400, context=30)(0)
    ids = torch.cat([(batch["docs_BT"] >= 0).flatten() for batch in batches])
    assert ids.float().mean() > 0.9
    for batch in Feed(examples=examples, tokens=400, context=30, packing=False, micro=100)(0):
        assert ((batch["targets_BT"] != IGNORED).any(0)).any() and batch["ids_BT"].numel() <= 100


def test_settings_that_cannot_be_are_refused(examples):
    with pytest.raises(UsageError, match="no length buckets"):
        Feed(examples=examples, tokens=64, context=30, bins=3)
    with pytest.raises(UsageError, match="longest example takes 28 rows"):
        Feed(examples=examples, tokens=64, context=16)
    with pytest.raises(UsageError, match="at least one token"):
        Feed(examples=examples, tokens=0, context=30)
