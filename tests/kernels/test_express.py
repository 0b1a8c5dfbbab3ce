"""A pass in one call is `Decoder.forward`'s, bit for bit; nobody's tensors are written over; likeliest tokens are argmax's."""

import random

import numpy as np
import pytest
import torch

from lithe.contracts.small import decided
from lithe.decode.inner import shared
from lithe.decode.lanes import Lanes
from lithe.kernels import library
from lithe.model import fast
from lithe.model.config import Config
from lithe.model.mask import Tree as TreeMask
from lithe.ops import accept
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence
from tests.kernels.variants import compiled

KINDS = [("fp32", 0, torch.float32), ("bf16", 0, torch.bfloat16), ("int8", 32, torch.bfloat16), ("int4", 32, torch.float32)]
TEXTS = [1, 2, 3, 9, 9], [4, 5, 6]
TREES = dict(logits="all", depths=[[0, 1, 1, 2], [0, 1]], mask=TreeMask([[-1, 0, 0, 1], [-1, 0]]))


INSIDE = [dict(taps=("final", 0, 2)), dict(taps=(1, 1, "final")), dict(layers=range(2), logits="none"), dict(layers=[0, 2]),
          dict(layers=[2, 0, 0], taps=(0, 1)), dict(skip=[(0, "mlp"), (1, "attn"), (1, "mlp")], taps=(0, 1, 2)),
          dict(layers=range(1, 1), logits="all"), dict(layers=[1], skip=((1, "attn"), (1, "mlp")), taps=(1, "final"))]


def fused(kind="fp32", group=0, dtype=torch.float32, tied=True, layers=2):
    shape = Config(vocab=64, width=32, layers=layers, heads=4, kv_heads=2, ffn=64, context=64, tied=tied)
    return fast.fuse(decided(shape, seed=0, scale=3.0).to(dtype), kind, group)


def lanes_of(model, texts=TEXTS):
    lanes = Lanes(model)
    lanes.sync([Sequence(ids, limit=9, context=64) for ids in texts])
    lanes.prefill()
    return lanes


def stored(lanes):
    return [t.clone() for t in (*lanes.cache.k, *lanes.cache.v)]


@compiled
@pytest.mark.parametrize(("kind", "group", "dtype"), KINDS, ids=[kind for kind, _, _ in KINDS])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS], ids=["one", "two"])
def test_it_is_the_long_way_bit_for_bit(kind, group, dtype, tied, texts, monkeypatch):
    model = fused(kind, group, dtype, tied)
    passes = [([[7], [8]], {}), ([[7, 8, 9], [3]], {}), ([[7, 8, 9], [3]], dict(logits="none")),
              ([[2], [3]], dict(logits="all")), ([[7, 8, 9, 2], [3, 4]], TREES | dict(taps=("final",)))]
    for ids, how in passes:
        ids = ids[: len(texts)]
        if "mask" in how:
            how = how | dict(depths=how["depths"][: len(texts)], mask=TreeMask(how["mask"].parents_B[: len(texts)]))
        quick, long = lanes_of(model, texts), lanes_of(model, texts)
        found = quick.run(ids, **how)
        with monkeypatch.context() as patch:
            patch.setattr(fast.Fast, "express", lambda *_: None)
            wanted = long.run(ids, **how)
        # where unequal rows are asked for their last logits, both go the long way
        assert hasattr(found, "best") is not (len(texts) == 2 and ids == [[7, 8, 9], [3]] and not how)
        assert not hasattr(wanted, "best")
        for b, row in enumerate(ids):
            assert torch.equal(found.hidden[b, : len(row)], wanted.hidden[b, : len(row)])
            if wanted.logits is not None:
                assert torch.equal(found.logits[b, : len(row)], wanted.logits[b, : len(row)])
            assert all(torch.equal(found.taps[name][b, : len(row)], tap[b, : len(row)]) for name, tap in wanted.taps.items())
        assert (found.logits is None) is (wanted.logits is None) and found.taps.keys() == wanted.taps.keys()
        assert all(map(torch.equal, stored(quick), stored(long)))


def long_way(monkeypatch, lanes, *given, **how):
    with monkeypatch.context() as patch:
        patch.setattr(fast.Fast, "express", lambda *_: None)
        return lanes.run(*given, **how)


@compiled
@pytest.mark.parametrize(("kind", "group", "dtype"), KINDS, ids=[kind for kind, _, _ in KINDS])
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS], ids=["one", "two"])
def test_what_looks_inside_a_pass_or_runs_a_part_of_it_is_one_call_too(kind, group, dtype, texts, monkeypatch):
    model = fused(kind, group, dtype, layers=3)
    ids = [[7, 8, 9], [3, 4, 5]][: len(texts)]
    tree = dict(depths=[[0, 1, 1]] * len(ids), mask=TreeMask([[-1, 0, 0]] * len(ids)), logits="all")
    for how in [each | more for each in INSIDE for more in ({}, tree, dict(states=None))]:
        if "states" in how:  # the rows begin as what some layer made of others
            how = how | dict(states=list(lanes_of(model, texts).run(ids, layers=[1], logits="none").hidden))
        how = dict(logits="all") | how
        quick, long = lanes_of(model, texts), lanes_of(model, texts)
        found, wanted = quick.run(ids, **how), long_way(monkeypatch, long, ids, **how)
        assert hasattr(found, "best") and not hasattr(wanted, "best")
        same = lambda a, b: a is b is None or torch.equal(a.float(), b.float())
        assert same(found.hidden, wanted.hidden) and same(found.logits, wanted.logits), how
        assert found.taps.keys() == wanted.taps.keys() and all(same(found.taps[name], wanted.taps[name]) for name in found.taps)
        assert all(map(torch.equal, stored(quick), stored(long)))


@compiled
def test_what_one_call_cannot_do_takes_the_long_way():
    lanes = lanes_of(fused())
    whole = lanes.run([[7], [8]])
    for how in (dict(taps=("embed",)), dict(layers=[(0, 1)]), dict(layers=[-2, -1])):
        assert not hasattr(lanes.run([[7], [8]], **how), "best")
    assert torch.equal(lanes.run([[7], [8]], taps=("final", 0)).logits, whole.logits)


@compiled
def test_a_view_of_a_cache_shares_what_was_made_for_it():
    model = fused()
    lanes = lanes_of(model, TEXTS[:1])
    lanes.run([[7]])
    twin = shared(lanes)
    twin.run([[7]], layers=[0])
    assert twin.cache.home.way is lanes.cache.way is not None and len(model.fast._stacks) == 1
    twin.commit([1])
    assert twin.cache.lengths == [5] and lanes.cache.lengths == [4], "lengths are a view's own"
    apart = lanes.cache.fork([0])
    before = stored(lanes)
    model(torch.tensor([[9]]), cache=apart)
    assert apart.home is apart and all(map(torch.equal, before, stored(lanes)))


@compiled
def test_taps_that_somebody_has_are_never_written_over():
    lanes = lanes_of(fused(), TEXTS[:1])
    run = lambda token: lanes.run([[token]], taps=(0, "final"))
    truth = {token: [tap.clone() for tap in run(token).taps.values()] for token in (7, 8, 9)}
    shown, held = run(7).taps, run(8)
    late = run(9).taps
    for token, taps in ((7, shown), (8, held.taps), (9, late)):
        assert all(map(torch.equal, taps.values(), truth[token]))


@compiled
def test_tensors_that_somebody_has_are_never_written_over():
    lanes = lanes_of(fused(), TEXTS[:1])
    run = lambda token: lanes.run([[token]], logits="all")
    truth = {token: run(token).logits.clone() for token in (7, 8, 9)}
    shown = run(7).logits  # of an output that is gone
    held, late = run(8), run(9)
    assert torch.equal(shown, truth[7]) and torch.equal(held.logits, truth[8]) and torch.equal(late.logits, truth[9])
    unread = [run(token).y.address for token in (7, 8, 9, 7)]
    assert len(set(unread[1:])) == 1, "what nobody asked for is room for the next pass"


@compiled
def test_logits_made_for_inference_may_be_asked_for_in_training():
    lanes = lanes_of(fused(), TEXTS[:1])
    with torch.inference_mode():
        out = lanes.run([[7]])
    weight = torch.ones((), requires_grad=True)
    (out.scores * weight).sum().backward()
    assert weight.grad is not None and weight.grad == out.scores.sum()


@compiled
def test_a_swapped_module_a_new_cache_and_longer_texts_are_seen():
    model = fused()
    lanes = lanes_of(model, TEXTS[:1])
    before = lanes.run([[7]]).logits
    old = model.sites("layers.0.mlp.up_proj")[0].swap(torch.nn.Linear(32, 64, bias=False))
    other = lanes.run([[7]])
    assert not hasattr(other, "best") and not torch.equal(other.logits, before)
    model.sites("layers.0.mlp.up_proj")[0].swap(old)
    assert torch.equal(lanes.run([[7]]).logits, before)
    lanes.cache.grow(lanes.cache.capacity + 256)
    again = lanes.run([[7]])
    assert hasattr(again, "best") and torch.equal(again.logits, before)
    with pytest.raises(IndexError, match="no row 5000"):
        lanes.run([[5000]])


@compiled
@pytest.mark.parametrize("width", [1, 31, 32, 33, 1000])
def test_the_likeliest_token_is_argmaxs(width):
    best = lambda row: library.load().lib.lithe_best(np.ascontiguousarray(row).ctypes.data, len(row))
    dice = np.random.default_rng(width)
    for levels in (2, 5, 10**6):
        for _ in range(30):
            row = (dice.integers(levels, size=width) - levels / 2).astype(np.float32)
            row[dice.random(width) < 0.2] = -np.inf
            wanted = accept.best_of(torch.from_numpy(row)[None])(0)
            assert best(row) == wanted == (int(row.argmax()) if row.max() > -np.inf else -1)
    for wrong in (np.inf, np.nan):
        row[dice.integers(width)] = wrong
        assert best(row) == accept.best_of(torch.from_numpy(row)[None])(0) == -1


def test_following_the_likeliest_is_walking_by_logits():
    dice, lengths = random.Random(0), set()
    for seed in range(200):
        tree = Tree([0])
        for node in range(1, dice.randrange(1, 12)):
            tree.add(dice.randrange(3), dice.randrange(node))
        scores_NV = torch.randint(2, (len(tree), 3), generator=torch.Generator().manual_seed(seed)).double()  # many ties
        decide = lambda node, tokens, scores_NV=scores_NV: accept.match(tokens, int(scores_NV[node].argmax()))
        walk = accept.greedy(tree, scores_NV)
        assert walk == accept.descend(tree, decide)
        lengths.add(len(walk.path))
    assert len(lengths) > 3
    with pytest.raises(ValueError, match="no token"):
        accept.likeliest(Tree([0]), lambda node: -1)
