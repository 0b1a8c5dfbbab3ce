"""EvoPress: mutations keep the budget, the search finds the best plan, and the program agrees where losses add up."""

import itertools
import random

import pytest
from hypothesis import given, settings, strategies as st

from lithe import registry
from lithe.compress import solve
from lithe.compress.evolution import drawn, mutated
from lithe.compress.run import Stage
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts import allocate as contract
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model


def method(name, **knobs):
    entry = registry.find(name, "allocate")
    return entry.module.Method(entry.knobs(**knobs))


@given(st.integers(0, 3), st.integers(0, 10**6), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_mutations_keep_the_cost_and_change_something(number, seed, switches):
    _, problem = list(contract.problems())[number]
    dice = random.Random(seed)
    parent = drawn(problem, dice)
    child = mutated(problem, parent, switches, dice)
    if number == 0:
        assert child is None  # all may stay: there is nothing to swap
        return
    assert child is not None and child != parent
    assert solve.spent(problem, child) == pytest.approx(solve.spent(problem, parent))
    assert sum(abs(child[name] - parent[name]) for name in parent) <= 2 * switches


def test_search_comes_near_the_best_of_all_plans_and_beats_uniform():
    _, problem = list(contract.problems())[2]
    found = method("evopress", generations=60, children=12, survivors="3+1", tokens="1+2").solve(problem)
    best = method("integer_program").solve(problem)  # losses add up here, so this one is proven
    loss = lambda plan: problem.loss(plan)
    assert loss(best) <= loss(found) <= 1.02 * loss(best) < loss(solve.uniform(problem))
    worse = method("evopress", generations=60, children=12, survivors="3+1", tokens="1+2", alone=True).solve(problem)
    assert loss(worse) > loss(found)  # without selection it drifts
    assert loss(method("integer_program", reverse=True).solve(problem)) > loss(best)


def test_depth_search_finds_what_trying_all_finds():
    model = copied(small_model(layers=4))
    made = Stage(model, parse("shortgpt:ratio=0.5,unit=half + evopress:generations=12,children=8,survivors=2+1,tokens=128+512"),
                 text(), 0, lambda *_: None, None, 0, 8)
    found = made.allocate()
    attn, mlp = ([g.name for g in made.groups if g.name.endswith(end)] for end in ("self_attn", "mlp"))
    plans = []
    for a in range(5):
        for off in itertools.product(itertools.combinations(attn, a), itertools.chain(*(itertools.combinations(mlp, n)
                                                                                           for n in range(5)))):
            plan = {g.name: int(g.name not in (*off[0], *off[1])) for g in made.groups}
            cost = made.problem.cost(plan)
            if abs(cost - found.cost) < 1:
                plans.append(plan)
    best = min(made.problem.loss(plan) for plan in plans)
    assert made.problem.loss(found.levels) <= 1.02 * best and len(plans) > 10
    assert found.notes["evaluations"] < 20 * len(plans) and found.notes["search_tokens"] > 0


def test_a_seed_is_a_plan():
    plans = []
    for seed in (0, 0, 1):
        _, problem = list(contract.problems())[3]
        problem.seed = seed
        plans.append(method("evopress", generations=2, children=4, survivors="1", tokens="1").solve(problem))
    assert plans[0] == plans[1] != plans[2]
