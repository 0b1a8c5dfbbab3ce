"""Several likeliest tokens by one call are those of as many passes, bit for bit, and it stops where it is told to."""

from itertools import pairwise

import pytest
import torch

from lithe.kernels.express import Goal
from lithe.model import express
from tests.kernels.test_express import KINDS, TEXTS, fused, lanes_of, stored
from tests.kernels.variants import compiled


def singly(lanes, rows, most, **parts):
    """The same tokens by single passes, and the chance of each."""
    found, chances = [[] for _ in rows], [[] for _ in rows]
    for _ in range(most):
        logits = [lanes.run(rows, logits="all", **parts).scores[b, len(row) - 1] for b, row in enumerate(rows)]
        lanes.commit([len(row) for row in rows])
        rows = [[int(row_V.argmax())] for row_V in logits]
        for b, row_V in enumerate(logits):
            found[b].append(rows[b][0])
            chances[b].append(float(row_V.double().softmax(-1).max()))
    return found, chances


@compiled
@pytest.mark.parametrize(("kind", "group", "dtype"), KINDS, ids=[kind for kind, _, _ in KINDS])
@pytest.mark.parametrize(("texts", "rows"), [(TEXTS[:1], [[7]]), (TEXTS[:1], [[7, 8, 9]]), (TEXTS, [[7], [8]])],
                         ids=["one", "rows", "two"])
@pytest.mark.parametrize("parts", [{}, dict(layers=[0, 2]), dict(skip=((1, "attn"), (1, "mlp")))],
                         ids=["whole", "layers", "skip"])
def test_tokens_cache_and_lengths_are_those_of_single_passes(kind, group, dtype, texts, rows, parts):
    model = fused(kind, group, dtype, layers=3)
    quick, long = lanes_of(model, texts), lanes_of(model, texts)
    found, (wanted, _) = quick.ahead(rows, Goal(6), **parts).tokens_BN, singly(long, rows, 6, **parts)
    assert found == wanted and (kind != "fp32" or parts or len({token for row in found for token in row}) > 1)
    assert quick.ids == long.ids and quick.cache.lengths == long.cache.lengths
    assert all(map(torch.equal, stored(quick), stored(long)))
    again = [row[-1:] for row in found]  # on from there, by either
    assert quick.ahead(again, Goal(3), **parts).tokens_BN == singly(long, again, 3, **parts)[0]
    assert torch.equal(quick.run(again).logits, long.run(again).logits)


@compiled
def test_it_stops_behind_an_end_an_unlikely_token_and_late():
    model = fused(layers=3)
    tokens, chances = (each[0] for each in singly(lanes_of(model, TEXTS[:1]), [[7]], 8))
    first = lambda so: next(n for n in range(8) if so(n))
    for token in set(tokens):
        lanes, n = lanes_of(model, TEXTS[:1]), tokens.index(token) + 1
        assert lanes.ahead([[7]], Goal(8, ends=(63, token))).tokens_BN == [tokens[:n]] and lanes.cache.lengths == [4 + n]
    for low, high in pairwise(sorted(chances)):
        stop = first(lambda n, high=high: chances[n] < high)
        if high - low > 1e-4:
            assert lanes_of(model, TEXTS[:1]).ahead([[7]], Goal(8, floor=(low + high) / 2)).tokens_BN == [tokens[: stop + 1]]
    assert lanes_of(model, TEXTS[:1]).ahead([[7]], Goal(8, seconds=0.0)).tokens_BN == [tokens[:1]]


@compiled
def test_a_batch_stops_with_the_first_that_ends():
    model = fused(layers=3)
    both, _ = singly(lanes_of(model), [[7], [8]], 8)
    ends = next((n, row[n]) for n in range(1, 8) for row in both if row[n] not in both[0][:n] + both[1][:n])
    assert lanes_of(model).ahead([[7], [8]], Goal(8, ends=ends[1:])).tokens_BN == [row[: ends[0] + 1] for row in both]


@compiled
def test_only_ids_that_both_vocabularies_have_are_said():
    model = fused(layers=3)
    for known in (1, 5, 40):
        lanes = lanes_of(model, TEXTS[:1])
        wanted = int(lanes.run([[7]]).logits[0, 0, :known].argmax())
        assert lanes.ahead([[7]], Goal(2, known=known)).tokens_BN[0][0] == wanted


@compiled
def test_logits_that_leave_none_end_it():
    model = fused(layers=3)
    tokens = singly(lanes_of(model, TEXTS[:1]), [[7]], 4)[0][0]
    spoilt = lanes_of(model, TEXTS[:1])
    last = next(n for n in (1, 2, 3) if tokens[n] not in [7, *tokens[:n]])
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    model.fast.forget()
    assert last and spoilt.ahead([[7]], Goal(4)) is None and spoilt.cache.lengths == [4]
    with pytest.raises(IndexError, match="no row 5000"):
        spoilt.ahead([[5000]], Goal(4))


@compiled
def test_what_one_call_cannot_do_is_left_to_single_passes():
    model = fused(layers=3)
    lanes = lanes_of(model)
    assert lanes.ahead([[7, 8], [9]], Goal(2)) is None and lanes.ahead([[7, 8], [9, 1]], Goal(2)) is None  # rows here and there
    assert lanes.ahead([[], []], Goal(2)) is None and lanes.ahead([[7], [8]], Goal(2), layers=[(0, 1), 2]) is None
    assert lanes.ahead([[7], [8]], Goal(62)) is None, "past the context of 64"
    assert lanes.cache.lengths == [4, 2], "and nothing was read"
    assert lanes_of(model, TEXTS[:1]).ahead([[1] * (express.MOST + 1)], Goal(1)) is None


@compiled
def test_what_somebody_holds_of_a_pass_is_not_written_over():
    lanes = lanes_of(fused(layers=3), TEXTS[:1])
    held, shown = lanes.run([[7]], logits="all"), lanes.run([[7]], logits="all").logits
    before = shown.clone()
    lanes.ahead([[8]], Goal(4))
    assert torch.equal(shown, before) and torch.equal(held.logits, before)


@compiled
@pytest.mark.parametrize("rows", [[[7]], [[7, 8, 9]]], ids=["one", "rows"])
@pytest.mark.parametrize("tap", ["final", 1])
def test_the_states_behind_tokens_are_those_of_single_passes(rows, tap):
    model = fused(layers=3)
    quick, long = lanes_of(model, TEXTS[:1]), lanes_of(model, TEXTS[:1])
    found, wanted = quick.ahead(rows, Goal(5), taps=(tap,)), []
    for token in [*found.tokens_BN[0][:-1], 0]:
        wanted.append(long.run(rows, taps=(tap,)).taps[tap][0, -1])
        long.commit([len(rows[0])])
        rows = [[token]]
    assert torch.equal(found.states_NC, torch.stack(wanted))
    before = found.states_NC.clone()
    assert quick.ahead([[0]], Goal(2), taps=(0, 1)) is None and quick.ahead([[0]], Goal(2), taps=(tap,)) is not None
    assert torch.equal(found.states_NC, before), "what somebody holds is not written over"
