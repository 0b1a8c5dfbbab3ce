"""The rival of the zoo's models is a proper distribution and agrees with a case worked by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "zoo"))
from kneser_ney import KneserNey, discounts


def test_probabilities_sum_to_one_after_any_context():
    dice = np.random.default_rng(0)
    vocab, order = 7, 4
    model = KneserNey([np.minimum(dice.geometric(0.4, 3000), vocab) - 1], vocab=vocab, order=order)
    for context in (*dice.integers(0, vocab, (40, order - 1)), [6, 6, 6]):  # seen contexts and unseen ones
        p = [model.p(np.array([*context, token]))[0] for token in range(vocab)]
        assert sum(p) == pytest.approx(1, abs=1e-6)
        assert min(p) > 0


def test_a_bigram_case_by_hand():
    # a b a b a c: bigrams ab 2, ba 2, ac 1; every discount falls back to 0.75
    model = KneserNey([np.array([0, 1, 0, 1, 0, 2])], vocab=3, order=2)
    # Continuation counts: a after {b}, b after {a}, c after {a}: one each, so p1 = (1 - .75)/3 + .75/3 = 1/3.
    # After a: total 3, kinds 2: p(b|a) = 1.25/3 + (1.5/3)/3, p(c|a) = .25/3 + (1.5/3)/3, p(a|a) = (1.5/3)/3.
    assert model.p(np.array([0, 1]))[0] == pytest.approx(1.25 / 3 + 0.5 / 3, abs=1e-6)
    assert model.p(np.array([0, 2]))[0] == pytest.approx(0.25 / 3 + 0.5 / 3, abs=1e-6)
    assert model.p(np.array([0, 0]))[0] == pytest.approx(0.5 / 3, abs=1e-6)
    assert model.p(np.array([2, 0]))[0] == pytest.approx(1 / 3, abs=1e-6)  # c was never followed: the lower order alone


def test_discounts_follow_counts_of_counts():
    counts = np.repeat([1, 2, 3, 4], [10, 4, 2, 1])
    y = 10 / 18
    assert discounts(counts) == pytest.approx((1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5))


def test_streams_are_apart_and_early_tokens_are_scored():
    apart = KneserNey([np.array([0, 1]), np.array([2, 3])], vocab=4, order=2)
    assert apart.p(np.array([1, 2]))[0] == pytest.approx(apart.p(np.array([3, 2]))[0])
    assert len(KneserNey([np.arange(9) % 4], vocab=4, order=3).stream(np.arange(6) % 4)) == 5
