"""Search for plans by mutation and selection. A plan here is an option by number for each group."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lithe.compress import solve
from lithe.compress.allocation import Problem

TRIES = 100  # at a mutation that keeps within the budget
HALVES = 4  # one child of so many drops a half or takes one back, where halves may go
Plan = dict[str, int]


def drawn(problem: Problem, dice: random.Random) -> Plan:
    """A random plan within the budget: random groups are lowered until it holds, then raised where they can be."""
    plan = {name: len(options) - 1 for name, options in problem.options.items()}
    while not fits(problem, plan):
        plan[dice.choice([name for name, i in plan.items() if i])] -= 1
    names = list(plan)
    dice.shuffle(names)
    for name in names:
        options = problem.options[name]
        while plan[name] + 1 < len(options) and fits(problem, plan | {name: plan[name] + 1}):
            plan[name] += 1
    return plan


def fits(problem: Problem, plan: Plan) -> bool:
    """Whether a plan keeps within the budget."""
    return solve.spent(problem, plan) <= problem.budget * (1 + solve.SLACK) and all(
        (not plan[half]) == (not plan[site]) for half, sites in problem.bound.items() for site in sites)


def alike(problem: Problem) -> list[list[str]]:
    """Groups whose options cost the same."""
    classes: dict[tuple, list[str]] = {}
    for name, options in ((name, options) for name, options in problem.options.items() if name not in problem.bound):
        classes.setdefault(tuple(round(option.cost, 3) for option in options), []).append(name)
    return list(classes.values())


def mutated(problem: Problem, parent: Plan, most: int, dice: random.Random, classes: Sequence[list[str]] | None = None,
            ) -> Plan | None:
    """The plan after min(U, U) swaps: of two groups of a class one gets a level more, one a level less; None where none can.

    classes: of groups whose steps cost the same; those with the same options where not given.
    """
    able = [names for names in (alike(problem) if classes is None else classes) if len(names) > 1]
    plan, wanted = dict(parent), min(dice.randint(1, most), dice.randint(1, most))
    if problem.bound and not dice.randrange(HALVES):
        return turned(problem, parent, dice)
    for _ in range(TRIES):
        if not able or (wanted <= 0 and plan != parent):
            break
        up, down = dice.sample(dice.choice(able), 2)
        if plan[down] == 0 or plan[up] + 1 == len(problem.options[up]):
            continue
        child = plan | {up: plan[up] + 1, down: plan[down] - 1}
        if fits(problem, child):
            plan, wanted = child, wanted - 1
    return None if plan == parent else plan


def turned(problem: Problem, parent: Plan, dice: random.Random) -> Plan | None:
    """The plan with a half gone that was there, or there again, and other groups raised or lowered at random in return."""
    half = dice.choice(list(problem.bound))
    plan = parent | dict.fromkeys((half, *problem.bound[half]), 0 if parent[half] else 1)
    able = [name for name, i in plan.items() if i and name not in problem.bound]
    least = {name: int(any(name in sites for sites in problem.bound.values())) for name in able}
    for way in (-1, 1):
        for _ in range(TRIES * len(able)):
            if not able or (way < 0 and fits(problem, plan)):
                break
            name = dice.choice(able)
            at = plan[name] + way
            if least[name] <= at < len(problem.options[name]) and (way < 0 or fits(problem, plan | {name: at})):
                plan[name] = at
    return plan if fits(problem, plan) and plan != parent else None


def selected(problem: Problem, parent: Plan, children: list[Plan], stages: Sequence[tuple[int, int]], seen: dict) -> Plan:
    """The best of children and parent: stages of (how many are left, judged on how many tokens); the parent joins the last.

    seen: losses by plan and tokens, filled on the way.
    """
    for number, (count, tokens) in enumerate(stages):
        pool = [*children, parent] if number + 1 == len(stages) else children
        children = sorted(pool, key=lambda plan: loss(problem, plan, tokens, seen))[:count]
    return children[0]


def loss(problem: Problem, plan: Plan, tokens: int, seen: dict) -> float:
    """The loss of a plan on so many tokens, measured once."""
    key = (tuple(plan.items()), tokens)
    if key not in seen:
        seen[key] = problem.loss(solve.plan(problem, plan), tokens)
    return seen[key]
