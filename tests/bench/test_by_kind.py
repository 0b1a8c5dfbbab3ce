"""Figures by kind of prompt: every kind weighs the same in the mean, and looping prompts count nowhere in it."""

import pytest

from lithe.bench import by_kind
from lithe.bench.measure import Run
from lithe.bench.rows import Row


def run(seconds: float, passes: int, tokens=range(20)) -> Run:
    return Run([list(tokens)], passes=passes, seconds=seconds)


LOOP = [7] * 20


def test_every_kind_weighs_the_same():
    plain = [[run(2.0, 20) for _ in range(4)]]
    method = [[run(1.0, 10), run(1.0, 10), run(1.0, 10), run(0.5, 5)]]  # twice as fast on three, four times on one
    row = by_kind.fill(Row(method="m", lossless=True), method, plain, ["a", "a", "a", "b"], seed=0)
    assert row.mean == pytest.approx(3.0)  # not the 2.5 of all prompts
    assert row.mean_interval == pytest.approx((3.0, 3.0))
    assert row.kinds["b"] == pytest.approx({"prompts": 1, "nonlooping": 1, "tokens_per_pass": 4.0, "speedup": 4.0,
                                            "tokens_per_pass_nonlooping": 4.0, "speedup_nonlooping": 4.0})


def test_loops_count_in_no_mean():
    plain = [[run(2.0, 20), run(2.0, 20, LOOP), run(2.0, 20, LOOP)]]
    method = [[run(1.0, 10), run(0.1, 1, LOOP), run(0.1, 1, LOOP)]]
    row = by_kind.fill(Row(method="m", lossless=True), method, plain, ["a", "a", "b"], seed=0)
    assert row.mean == pytest.approx(2.0)
    assert row.kinds["a"]["speedup"] > 3
    assert row.kinds["b"]["nonlooping"] == 0 and "speedup_nonlooping" not in row.kinds["b"]


def test_a_group_of_mixed_kinds_is_of_none():
    row = by_kind.fill(Row(method="m", lossless=True), [[run(1.0, 10)]], [[run(2.0, 20)]], [""], seed=0)
    assert row.kinds == {} and row.mean is None


def test_an_interrupted_run_has_the_kinds_it_came_to():
    row = by_kind.fill(Row(method="m", lossless=True), [[run(1.0, 10)]], [[run(2.0, 20)]], ["a", "b"], seed=0)
    assert list(row.kinds) == ["a"]
