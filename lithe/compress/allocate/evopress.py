"""Evolution: plans swap levels between groups at a constant budget, and those whose predictions stay nearest survive."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.compress import solve
from lithe.compress.allocation import Problem
from lithe.compress.evolution import Plan, drawn, mutated, selected
from lithe.errors import UsageError

CARD = Card(paper="EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search", row=98,
            promises=("meets_budget",), needs=("loss",))
QUICK = {"generations": 4, "children": 6, "survivors": "3+1", "tokens": "64+256", "start": 4}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    generations: int = knob(400, "how often the best plan is changed; for depth the paper takes k (n - k) / 1.5", low=1)
    children: int = knob(64, "changed plans a generation; the paper takes 32 for depth, 64 for sparsity, 128 for bits", low=1)
    survivors: tuple[int, ...] = knob((8, 2, 1), "children left after each stage of selection, joined by +")
    tokens: tuple[int, ...] = knob((2048, 16384, 65536), "calibration tokens of each stage, joined by +")
    switches: int = knob(3, "most swaps in a child", low=1)
    start: int = knob(64, "random plans that the first one is the best of, where groups are only kept or dropped", low=1)
    alone: bool = knob(False, "take every first child, better or not: the negative control")


class Method:
    """(1 + lambda) with elitism and staged selection (Sieberling et al. 2024, algorithm 1)."""

    def __init__(self, knobs: Knobs):
        self.knobs = knobs
        if len(knobs.survivors) != len(knobs.tokens) or knobs.survivors[-1] != 1:
            raise UsageError("survivors and tokens must be as many, and the last stage leaves 1")

    def solve(self, problem: Problem) -> dict:
        problem.check()
        seen: dict[tuple, float] = {}
        dice = random.Random(problem.seed)
        parent = self._first(problem, dice)
        for _ in range(self.knobs.generations):
            tried = (mutated(problem, parent, self.knobs.switches, dice) for _ in range(self.knobs.children))
            children = [child for child in tried if child]
            if not children:
                break
            stages = list(zip(self.knobs.survivors, self.knobs.tokens, strict=True))
            parent = children[0] if self.knobs.alone else selected(problem, parent, children, stages, seen)
        problem.notes |= {"evaluations": len(seen), "generations": self.knobs.generations}
        return solve.plan(problem, parent)

    def _first(self, problem: Problem, dice: random.Random) -> Plan:
        """The uniform plan, or of groups that are only kept or dropped the best of some random ones."""
        if max(len(options) for options in problem.options.values()) > 2:
            uniform = solve.uniform(problem)
            return {name: [o.level for o in options].index(uniform[name]) for name, options in problem.options.items()}
        plans = [drawn(problem, dice) for _ in range(self.knobs.start)]
        return min(plans, key=lambda plan: problem.loss(solve.plan(problem, plan), self.knobs.tokens[0]))
