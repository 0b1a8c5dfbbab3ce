"""Length buckets (row 68): little padding, every example once, and a tuner that finds what fits."""

import numpy as np
import pytest

from lithe.errors import TooLargeError, UsageError
from lithe.train import buckets


@pytest.fixture(scope="module")
def pairs():
    """Log-normal inputs, and outputs in some proportion to them."""
    dice = np.random.default_rng(0)
    first = np.exp(dice.normal(5, 0.8, 20_000))
    return np.stack([first, first / 4 * np.exp(dice.normal(0, 0.3, len(first)))], 1).astype(int).clip(1)


def made(lengths_ND, bucket, budget=20_000, seed=0, **kwargs):
    return buckets.batches(lengths_ND, bucket, budget, np.random.default_rng(seed), **kwargs)


def test_buckets_leave_little_padding(pairs):
    one = pairs[:, :1]
    assert buckets.waste(one, made(one, np.zeros(len(one), int))) > 0.45  # the control: batches of all lengths
    assert buckets.waste(one, made(one, buckets.assign(one))) <= 0.12
    by_input = buckets.waste(pairs, made(pairs, buckets.split(pairs[:, 0], buckets.BINS)))
    by_both = buckets.waste(pairs, made(pairs, buckets.assign(pairs)))
    assert by_both < by_input


def test_every_example_once_and_within_the_budget(pairs):
    groups = made(pairs, buckets.assign(pairs))
    assert sorted(np.concatenate(groups)) == list(range(len(pairs)))
    assert all(len(g) * pairs[g].max(0).sum() <= 20_000 or len(g) == 1 for g in groups)
    assert all(np.array_equal(a, b) for a, b in zip(groups, made(pairs, buckets.assign(pairs)), strict=True))
    assert not np.array_equal(groups[0], made(pairs, buckets.assign(pairs), seed=1)[0])


def test_bins_hold_equal_totals_in_order(pairs):
    bins = buckets.split(pairs[:, 0], 30)
    totals = np.bincount(bins, pairs[:, 0])
    assert len(totals) == 30 and totals.max() / totals.min() < 1.05
    order = np.argsort(pairs[:, 0], kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    with pytest.raises(UsageError, match="0 bins"):
        buckets.split(pairs[:, 0], 0)


def test_a_quadratic_cost_makes_batches_of_long_examples_smaller(pairs):
    one, bins = pairs[:, :1], buckets.assign(pairs[:, :1])
    plain, dear = made(one, bins), made(one, bins, cost=lambda lengths: buckets.effective(lengths, 500.0))
    widest = lambda groups: max(groups, key=lambda g: one[g].mean())
    assert len(widest(dear)) < len(widest(plain))
    with pytest.raises(UsageError, match="must be positive"):
        buckets.effective(one, 0.0)


@pytest.mark.parametrize("limit", [1, 7, 31, 32, 33, 100, 5000])
def test_the_tuner_finds_a_known_limit(limit):
    asked = []

    def fits(rows):
        asked.append(rows)
        return rows <= limit

    found = buckets.most(fits)
    assert found <= limit <= max(found + 1, found / 0.95)
    assert len(asked) < 20


def test_a_row_that_never_fits_is_told():
    with pytest.raises(TooLargeError, match="not even one row"):
        buckets.most(lambda rows: False)
