"""Some of the budget is met by whole blocks that hardly turn the residual stream, the rest by units of all that stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lithe.card import Card, knob
from lithe.compress import solve
from lithe.compress.allocation import Plan, Problem
from lithe.compress.groups import WIDTHS
from lithe.errors import UsageError

CARD = Card(paper="Lightweight and Post-Training Structured Pruning for On-Device Large Lanaguage Models", row=16,
            needs=("inputs", "loss"), promises=("meets_budget",))
QUICK = {"phi": "0+0.5+1", "tokens": 128}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    phi: tuple[float, ...] = knob((0.0, 0.25, 0.5, 0.75, 1.0), "share of what goes that whole blocks make up, joined by +; of "
                                                               "several the one of least measured loss is taken")
    tokens: int = knob(0, "calibration tokens that they are measured on; 0: all", low=0)
    strength: float = knob(0.0, "how much shares follow how far a block turns the stream; 0 is uniform", low=0, high=10)


class Method:
    """Blocks go by 1 - cosine of the states before and after, scored again after each one; then units, evenly.

    Blocks can go where a group is a block's attention or its FFN (unit=width); else units alone do.
    """

    def __init__(self, knobs: Knobs):
        self.knobs = knobs
        if not knobs.phi or not all(0 <= share <= 1 for share in knobs.phi):
            raise UsageError("phi must be shares from 0 to 1, joined by +")

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        plans: list[Plan] = []
        for plan in self._plans(problem):
            plans += [plan] if plan not in plans else []
        if len(plans) == 1:
            return plans[0]
        problem.store({name: sorted({plan[name] for plan in plans}, key=lambda level: float(level or 0))
                       for name in problem.options})
        losses = [problem.loss(plan, self.knobs.tokens) for plan in plans]
        problem.notes |= {"evaluations": len(plans), "blocks_gone": [len(_gone(problem, plan)) for plan in plans],
                          "losses": [round(loss, 5) for loss in losses]}
        return plans[losses.index(min(losses))]

    def _plans(self, problem: Problem) -> Iterator[Plan]:
        """A plan for each phi, where there is one."""
        cost = {layer: sum(problem.options[group.name][-1].cost for group in problem.groups if group.layer == layer)
                for layer in sorted({group.layer for group in problem.groups})}
        whole = {group.unit for group in problem.groups} == set(WIDTHS) and all(
            options[0].level == 0 for options in problem.options.values())
        order = _order(problem, list(cost)) if whole and any(self.knobs.phi) else []
        for phi in sorted(set(self.knobs.phi)):
            room, gone = phi * (problem.full - problem.budget) * (1 + solve.SLACK), []  # type: float, list[int]
            for layer in order[:-1]:
                if sum(cost[other] for other in [*gone, layer]) > room:
                    break
                gone.append(layer)
            rest = [group for group in problem.groups if group.layer not in gone]
            part = replace(problem, groups=rest, options={group.name: problem.options[group.name] for group in rest},
                           notes=problem.notes)
            yield {group.name: 0 for group in problem.groups if group.layer in gone} | self._units(part)

    def _units(self, problem: Problem) -> Plan:
        """The same share of all, or more where a block turns the stream further."""
        if not self.knobs.strength:
            return solve.uniform(problem)
        scores = problem.block_scores("cosine")
        weight = {group.name: max(scores[group.layer], 1e-12) ** self.knobs.strength for group in problem.groups}
        mean = sum(weight.values()) / len(weight)
        return solve.at_shares(problem, {name: problem.share * found / mean for name, found in weight.items()})


def _order(problem: Problem, layers: list[int]) -> list[int]:
    """Blocks by how little they turn the stream, scored again without those before."""
    left, order = list(layers), []  # type: list[int], list[int]
    while left:
        scores = problem.block_scores("cosine", left)
        order.append(left.pop(scores.index(min(scores))))
    return order


def _gone(problem: Problem, plan: Plan) -> set[int]:
    kept = {group.layer for group in problem.groups if plan[group.name] != 0}
    return {group.layer for group in problem.groups} - kept
