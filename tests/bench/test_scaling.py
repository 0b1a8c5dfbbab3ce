"""Laws that are fitted must be found where they are, and missed where they are not."""

import math

import pytest

from lithe.bench.scaling import held_out, log_law, pick, tokens_a_pass
from lithe.errors import UsageError

SIZES = [0.25e6, 0.5e6, 1e6, 2e6, 4e6]


def test_a_law_that_is_there_is_found_and_foretells_what_was_left_out():
    law = log_law(SIZES, [1.0 + 0.2 * math.log(x) for x in SIZES])
    assert (law.a, law.b) == pytest.approx((1.0, 0.2)) and law.r2 == pytest.approx(1) and law.missed < 1e-9
    assert law.at(16e6) == pytest.approx(1.0 + 0.2 * math.log(16e6)) and law.reach(law.at(3e6)) == pytest.approx(3e6)


def test_what_saturates_is_told_by_the_largest_point():
    """The control: tokens a pass that stop growing are no law of ln D, and the last point is where it shows."""
    taus = [2.0, 2.4, 2.6, 2.65, 2.66]
    law = log_law(SIZES, taus)
    assert law.r2 < 0.9 and held_out(SIZES, taus, 4) > 0.05 and law.missed > 0.05


def test_what_cannot_be_fitted_is_told():
    for xs, taus in (([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([0, 1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2])):
        with pytest.raises(UsageError, match="three different sizes"):
            log_law(xs, taus)
    with pytest.raises(UsageError, match="never reaches"):
        log_law([1, 2, 3], [3, 2, 1]).reach(9)


def test_tokens_a_pass_of_a_tree_are_one_and_its_chances():
    rates = [[0.5, 0.2], [0.4, 0.1]]
    assert [tokens_a_pass(rates, n) for n in (0, 1, 2, 3)] == pytest.approx([1, 1.5, 1.7, 1.9])


def test_the_tree_that_pays_shrinks_with_the_batch_once_rows_cost():
    tau = lambda n: 1 + 2 * (1 - 0.8**n)
    bound = lambda rows: max(1.0, rows / 16)  # free up to sixteen rows, then by the row
    drafting = lambda batch, n: 0.1 * (n > 0)
    sizes = [pick(batch, tau, bound, drafting, sizes=range(1, 33)).nodes for batch in (1, 2, 4, 8, 16)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 10 and sizes[-1] == 0
    free = pick(16, tau, lambda rows: 1.0, lambda batch, n: 0.0, sizes=range(1, 33))
    assert free.nodes == 32 and free.speed == pytest.approx(16 * tau(32))
