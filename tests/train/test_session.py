"""What a training chooses: how rows are laid out, and the reasons it tells."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.feed import Feed
from lithe.train.guide import Guide
from lithe.train.session import Settings, laid_out, train
from lithe.train.text import of_ids
from lithe.tune.rack import Rack

SMALL = Config(vocab=64, width=16, layers=2, heads=2, kv_heads=1, ffn=32, context=512, tied=True)
WIDE = replace(SMALL, width=128, ffn=512)
DICE = np.random.default_rng(0)


def examples(lengths):
    return of_ids((DICE.integers(0, 64, n), [True] * n) for n in lengths)


def made(lengths, tokens, config=SMALL, **settings):
    make = partial(Feed, examples=examples(lengths), tokens=tokens, context=512, micro=None)
    return laid_out(make, Settings(**settings), Decoder(config))


def test_the_cheaper_layout_is_chosen_and_the_reason_told():
    """Short texts of like length lose nothing to padding, but pay for a packed row's attention; unlike ones the reverse."""
    feed, reason = made([9] * 200, 500, bins=2)
    assert not feed.packing and feed.bins == 2 and reason.startswith("padded rows from 2 length buckets: a token costs")
    feed, reason = made([20, 5, 4, 3, 18, 6, 2, 19] * 5, 64, WIDE, bins=0)
    assert feed.packing and reason.startswith("packed rows: a token costs")


@pytest.mark.parametrize("packing", [True, False])
def test_what_is_asked_for_is_not_chosen(packing):
    feed, reason = made([9] * 200, 500, packing=packing)
    assert feed.packing == packing and not reason


def test_a_counted_cost_is_that_of_the_shapes():
    """One text of 10 rows: its weights' products and its attention, nothing else."""
    feed = Feed(examples=examples([11]), tokens=10, context=512)
    weights = 16 * (2 * 16 + 2 * 8 + 3 * 32)
    assert feed.cost(SMALL) == 2 * (weights + 2 * 10 * 16)


def test_a_training_tells_what_it_chose():
    told: list[str] = []
    session = train(Decoder(SMALL).init(0), examples([9] * 60), Settings(steps=2, batch_tokens=64), context=512, quiet=True,
                    tell=told.append)
    assert told == session.chosen.reasons and any("million operations packed" in line for line in told)
    assert session.json()["steps"] == 2


def test_parts_may_change_their_length_while_they_train():
    """Counting what a pass keeps must not keep its graph: that knows how long the parts were."""
    model = Decoder(SMALL).init(0)
    rack = Rack.of(model)
    adapter = rack.make("sara:density=0.2", name="a")
    rack.train("a")
    before = sum(part.values.numel() for part in adapter.parts.values())
    settings = Settings(steps=6, batch_tokens=64, lr=1e-2)
    guide = Guide(adapter.method, adapter.parts)
    train(model, examples([9] * 60), settings, context=512, quiet=True, guide=guide, adapter=True)
    assert sum(part.values.numel() for part in adapter.parts.values()) < before
