"""Rates, intervals and looping, on cases small enough to do by hand."""

import numpy as np
import pytest

from lithe.bench import quiet, stats


@pytest.mark.parametrize(("tokens", "share"), [
    ([], 0.0), ([1, 2, 3], 0.0), ([1, 2, 3, 4], 0.0), ([1] * 5, 0.5), ([1] * 23, 0.95), ([1, 2, 3, 4] * 2, 0.2),
    ([1, 2, 3] * 3, 0.5), (list(range(100)), 0.0),
])
def test_repetition_is_the_share_of_4_grams_seen_before(tokens, share):
    assert stats.repetition(tokens) == share


def test_a_text_loops_only_past_a_fifth():
    exactly = [1, 2, 3, 4] * 2
    assert stats.repetition(exactly) == 0.2 and not stats.loops(exactly)
    assert stats.loops([1, 2, 3] * 3)


def test_rate_takes_the_median_of_repeats_and_weighs_prompts_by_tokens():
    seconds = np.array([[1.0, 100.0, 2.0], [3.0, 3.0, 3.0]])
    tokens = np.array([[10.0] * 3, [30.0] * 3])
    assert stats.rate(seconds, tokens) == pytest.approx(40 / (2 + 3))


def test_ratio_is_plain_seconds_per_token_over_the_methods():
    seconds, tokens = np.array([[1.0], [2.0]]), np.array([[10.0], [10.0]])
    assert stats.ratio(seconds, tokens, 3 * seconds, tokens) == pytest.approx(3)
    assert stats.ratio(seconds, 2 * tokens, seconds, tokens) == pytest.approx(2)


def test_a_constant_ratio_has_no_width_however_prompts_differ():
    seconds = np.random.default_rng(0).uniform(0.1, 9, size=(6, 3))
    tokens = np.full((6, 3), 8.0)
    assert stats.interval(stats.ratio, seconds, tokens, 2 * seconds, tokens) == pytest.approx((2, 2))


def test_the_interval_of_two_prompts_is_that_of_their_three_mixtures():
    # Ratios 1 and 3 at equal plain cost: a quarter of the draws takes the first twice, a quarter the second, so both are ends.
    seconds, plain = np.array([[3.0], [1.0]]), np.array([[3.0], [3.0]])
    tokens = np.ones((2, 1))
    assert stats.interval(stats.ratio, seconds, tokens, plain, tokens) == pytest.approx((1, 3))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    dice = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        plain, method = dice.lognormal(0, 0.2, size=(30, 1)), dice.lognormal(0, 0.2, size=(30, 1))
        low, high = stats.interval(stats.ratio, method, np.ones((30, 1)), plain, np.ones((30, 1)), draws=100)
        hits += low <= 1 <= high
    assert 88 <= hits <= 100


def test_one_prompt_run_once_has_no_interval():
    one = np.ones((1, 1))
    assert stats.interval(stats.ratio, one, one, one, one) is None


def test_stalls_mark_a_machine_as_disturbed():
    calm = quiet.judge([20e-6] * 5000)
    assert not calm.disturbed and calm.mean_us == pytest.approx(20) and calm.lost == 0
    one_blip = quiet.judge([20e-6] * 12000 + [8e-3])
    assert not one_blip.disturbed
    foreign_thread = quiet.judge([20e-6] * 5000 + [8e-3] * 12)
    assert foreign_thread.disturbed and foreign_thread.max_us == pytest.approx(8000)
    assert quiet.worse(calm, foreign_thread) is foreign_thread
    assert quiet.listen(0.01).mean_us > 0
