"""Positions as bits: they come back, take what the formula says, and nothing is believed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lithe.ops import golomb


@given(st.sets(st.integers(0, 3000)), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_positions_come_back(places, b):
    where = np.array(sorted(places), np.int64)
    data = np.frombuffer(golomb.write(where, b), np.uint8)
    if b <= (3001).bit_length():
        assert golomb.read(data, len(where), 3001, b).tolist() == where.tolist()


@given(st.binary(max_size=40), st.integers(-1, 200), st.integers(0, 300), st.integers(-1, 50))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_positions_or_an_error(data, count, size, b):
    try:
        found = golomb.read(np.frombuffer(data, np.uint8), count, size, b)
    except ValueError:
        return
    assert len(found) == count and (np.diff(found) > 0).all() and (count == 0 or 0 <= found[0] <= found[-1] < size)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.5])
def test_the_size_is_the_papers(share):
    """ComPEFT's formula, and the bits a value that follow from it; a plain mask needs more than one."""
    where = np.flatnonzero(np.random.default_rng(0).random(200_000) < share)
    b = golomb.width(share)
    bits = 8 * len(golomb.write(where, b)) / len(where)
    assert bits == pytest.approx(golomb.expected_bits(share), rel=0.01)
    told = {0.05: 0.34, 0.1: 0.58, 0.2: 0.94, 0.3: 1.19, 0.5: 1.5}[share]
    assert share * (golomb.expected_bits(share) + 1) == pytest.approx(told, abs=0.011)
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / share
    assert 0.99 * entropy < bits < 1.06 * entropy + 0.1
    worse = 8 * len(golomb.write(where, b + 3)) / len(where)
    assert worse > 1.15 * bits, "any width would do, so this proves nothing"


def test_masks_count_as_floats_do():
    dice = np.random.default_rng(1)
    a, b = (dice.integers(-1, 2, 1003) for _ in range(2))
    assert golomb.mask_dot(golomb.ternary_masks(a), golomb.ternary_masks(b)) == int((a * b).sum())
