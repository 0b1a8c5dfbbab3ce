"""Forms of a difference: what comes back, what it weighs, and that bytes from anywhere are a difference or an error."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lithe.errors import FormatError
from lithe.tune import coding
from lithe.tune.whole import TURNS, Whole

DICE = torch.Generator().manual_seed(0)
DELTA = torch.randn(40, 33, generator=DICE) * 1e-3
KEEP = torch.rand(40, 33, generator=DICE) < 0.2
ZERO = torch.zeros_like(DELTA)
ALL = [coding.floats(DELTA), coding.kept(DELTA, KEEP), coding.drawn(DELTA, 7, 0.1), coding.signs(DELTA, KEEP, 0.5),
       coding.signs(DELTA, KEEP, 0.5, masks=True), coding.levels(DELTA, (DELTA / 4e-4).round(), 4e-4),
       coding.exact(ZERO, DELTA), coding.same(DELTA.numel())]


def test_every_form_gives_back_what_it_was_given():
    wanted = {"floats": DELTA, "kept": DELTA * KEEP, "signs": 0.5 * DELTA.sign() * KEEP, "masks": 0.5 * DELTA.sign() * KEEP,
              "levels": 4e-4 * (DELTA / 4e-4).round(), "exact": DELTA, "same": ZERO}
    places = torch.zeros(DELTA.numel())
    places[torch.from_numpy(coding.draw(7, 0.1, DELTA.numel()))] = 1
    wanted["drawn"] = DELTA * places.view(DELTA.shape)
    assert {one.form for one in ALL} == set(wanted) == set(coding.READERS)
    for one in ALL:
        found = coding.decode(one, ZERO)
        assert torch.allclose(found, wanted[one.form], rtol=6e-4, atol=DELTA.abs().max().item() * 4e-8), one.form
    assert torch.equal(coding.decode(ALL[3], ZERO), wanted["signs"]), "ternary comes back to the bit"
    assert len(ALL[3].data) * 8 / DELTA.numel() < 1 < len(ALL[4].data) * 8 / DELTA.numel() == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_exact_is_exact_where_subtraction_is_not(dtype):
    before, after = (torch.randn(50, 7, generator=DICE).to(dtype) for _ in range(2))
    assert torch.equal(coding.restore(coding.exact(before, after), before), after)
    single = before.float() + (after.float() - before.float())
    assert dtype != torch.float32 or not torch.equal(single, after)


def test_what_is_drawn_is_drawn_evenly_and_the_same_for_ever():
    assert coding.draw(1, 0.1, 50).tolist() == [2, 32, 33, 41, 42, 43]
    counts = [len(coding.draw(seed * 10**9, 0.1, 10_000)) for seed in range(40)]
    assert abs(np.mean(counts) - 1000) < 4 * 30 / 40**0.5 and 15 < np.std(counts) < 50


@pytest.mark.parametrize("share", [0.001, 0.1, 0.37, 1.0])
def test_the_largest_are_those_of_a_sort_and_spread_is_torchs(share):
    pieces = {name: torch.randn(300, generator=DICE) * 10.0**number for number, name in enumerate("abc")}
    whole = Whole(share)
    for turn in range(TURNS):
        for name, piece in pieces.items():
            whole.read(name, piece, turn)
    flat = torch.cat(list(pieces.values()))
    kept = torch.cat([whole.largest(name, piece) for name, piece in pieces.items()])
    top = flat.abs().sort(descending=True).indices[: int(share * 900)]
    assert sorted(kept.nonzero().flatten().tolist()) == sorted(top.tolist())
    assert whole.deviation == pytest.approx(flat.double().std().item())
    assert whole.mean == pytest.approx(flat[top].double().abs().mean().item() if len(top) else 0)


NUMBERS = st.dictionaries(st.sampled_from(["count", "low", "places", "scale", "step", "sizes", "seed", "share"]),
                          st.integers(-2, 2**65) | st.floats() | st.none() | st.text(max_size=2) | st.booleans(), max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ALL), NUMBERS, st.integers(0, 4000), st.binary(max_size=4), st.sampled_from([0, 1, 1320, 2**50]))
def test_any_claim_is_a_difference_or_an_error(one, numbers, at, bytes_, size):
    data = one.data[: at % (len(one.data) + 1)] + bytes_ + one.data[at % (len(one.data) + 1) + len(bytes_) :]
    told = coding.Coded(one.form, size or one.size, {**one.numbers, **numbers}, data)
    try:
        found = coding.decode(told, ZERO)
    except FormatError:
        return
    assert found.shape == ZERO.shape and torch.isfinite(found).all()
