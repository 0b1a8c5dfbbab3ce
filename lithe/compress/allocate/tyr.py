"""Widths are searched in a store of a few levels a group, again and again with finer levels around the best plan."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lithe.card import Card, knob
from lithe.compress import solve
from lithe.compress.allocation import Option, Plan, Problem
from lithe.compress.evolution import mutated, selected
from lithe.compress.groups import Level
from lithe.errors import UnsupportedError, UsageError

CARD = Card(paper="Týr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution Optimization", row=26,
            needs=("loss",), promises=("meets_budget",))
QUICK = {"iterations": 2, "generations": 3, "children": 4, "survivors": "2+1", "tokens": "64+128"}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    iterations: int = knob(4, "searches, each with half the step of the one before", low=1)
    store: int = knob(9, "levels of a group in the store", low=2)
    step: float = knob(0.125, "from one level to the next at first, as a share of a group", low=0.001, high=0.5)
    generations: int = knob(50, "of a search", low=1)
    children: int = knob(128, "changed plans a generation", low=1)
    survivors: tuple[int, ...] = knob((16, 4, 1), "left after each stage of selection, joined by +; the paper's elite of 2 is "
                                                  "the parent and the last one")
    tokens: tuple[int, ...] = knob((2048, 16384, 131072), "calibration tokens of each stage, joined by +")
    switches: int = knob(4, "most swaps in a child", low=1)
    accumulate: str = knob("expected", "what later blocks are calibrated on: the mean of a block's levels, weighted by what "
                                       "they keep; its middle one, as the code has it; or the dense block",
                           choices=("expected", "middle", "dense"))


class Method:
    """Swaps of one level between groups of a kind keep the budget; the best by KL to the dense model is what the next, finer
    store is built around."""

    def __init__(self, knobs: Knobs):
        self.knobs = knobs
        if len(knobs.survivors) != len(knobs.tokens) or knobs.survivors[-1] != 1:
            raise UsageError("survivors and tokens must be as many, and the last stage leaves 1")

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        if any(isinstance(option.level, str) for options in problem.options.values() for option in options):
            raise UnsupportedError("levels are moved by steps of one size here, which the ways of a mixture have not: take "
                                   "another allocation")
        dice, plan, notes = random.Random(problem.seed), solve.uniform(problem), []
        stages = list(zip(self.knobs.survivors, self.knobs.tokens, strict=True))
        for turn in range(self.knobs.iterations):
            options = {group.name: around(problem.options[group.name], plan[group.name], group.units,
                                          self.knobs.step / 2 ** turn, self.knobs.store) for group in problem.groups}
            part = replace(problem, options=options, budget=problem.cost(plan), notes={})
            problem.store({name: [option.level for option in found] for name, found in options.items()},
                          self.knobs.accumulate)
            at = {name: [option.level for option in found].index(plan[name]) for name, found in options.items()}
            seen: dict = {}
            for _ in range(self.knobs.generations):
                tried = (mutated(part, at, self.knobs.switches, dice, kinds(part)) for _ in range(self.knobs.children))
                children = [child for child in tried if child]
                if not children:
                    break
                at = selected(part, at, children, stages, seen)
            plan = solve.plan(part, at)
            notes.append(len(seen))
        problem.notes |= {"evaluations": sum(notes), "by_iteration": notes}
        return plan


def around(options: list[Option], level: Level, units: int, share: float, count: int) -> list[Option]:
    """Of a group's options those at whole steps from a level, at most so many, that level among them."""
    by_level = {float(option.level or 0): option for option in options}
    grain = min((b - a for a, b in zip(sorted(by_level), sorted(by_level)[1:], strict=False)), default=1.0)
    step = max(1, round(share * units / grain)) * grain
    wanted = [float(level or 0) + step * (i - count // 2) for i in range(count)]
    return [by_level[each] for each in wanted if each in by_level]


def kinds(problem: Problem) -> list[list[str]]:
    """Groups of one unit and size: a step of one costs what a step of another does."""
    found: dict[tuple, list[str]] = {}
    for group in problem.groups:
        found.setdefault((group.unit, group.units, group.weights), []).append(group.name)
    return list(found.values())
