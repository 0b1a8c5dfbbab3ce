"""Blocks at which the loss is steeper keep more; the slope is found without a gradient, from losses alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.compress import solve
from lithe.compress.allocation import Plan, Problem
from lithe.compress.groups import Group

CARD = Card(paper="ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models", row=130, needs=("loss",),
            promises=("meets_budget",))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    step: float = knob(1e-3, "length of the move along each random direction", low=1e-9, high=1)
    samples: int = knob(32, "calibration rows, each with a direction of its own", low=1)
    margin: float = knob(0.1, "no block loses more than the share asked for and this", low=0, high=1)
    by: str = knob("block", "what gets one share", choices=("block", "site"))
    even: bool = knob(False, "the same score for all: the control")


class Method:
    """Mean |L(w + e z) - L(w - e z)| / 2 e a block; a floor for all, the rest in proportion to scores (Sung et al. 2024)."""

    grain = 100  # levels that entries are dealt in

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        parts: dict[object, list[Group]] = {}
        for group in problem.groups:
            parts.setdefault(group.layer if self.knobs.by == "block" else group.name, []).append(group)
        scores = {name: 1.0 if self.knobs.even else problem.slope(groups, self.knobs.step, self.knobs.samples)
                  for name, groups in parts.items()}
        sizes = {name: sum(problem.options[group.name][-1].cost for group in groups) for name, groups in parts.items()}
        floor = max(0.0, problem.share - self.knobs.margin)
        kept = dealt(sizes, scores, problem.budget, floor)
        problem.notes |= {"slopes": {str(name): float(f"{score:.4g}") for name, score in scores.items()}}
        return solve.at_shares(problem, {group.name: kept[name] / sizes[name] for name, groups in parts.items()
                                         for group in groups})


def dealt(sizes: Mapping[object, float], scores: Mapping[object, float], budget: float, floor: float) -> dict[object, float]:
    """What each part keeps: a floor, as a share of its size, and of what is left as much as its score says, at most all of it.

    What a full part cannot take goes to the others, until the budget is spent.

    >>> dealt({"a": 10, "b": 10, "c": 10}, {"a": 1, "b": 1, "c": 8}, 18, 0.2)
    {'a': 4.0, 'b': 4.0, 'c': 10}
    """
    kept = {name: floor * size for name, size in sizes.items()}
    open_ = {name: score if score > 0 else 1e-300 for name, score in scores.items()}
    left = budget - sum(kept.values())
    while left > 0 and open_:
        total = sum(open_.values())
        full = [name for name, score in open_.items() if kept[name] + left * (score / total) >= sizes[name]]
        if not full:
            return kept | {name: kept[name] + left * (score / total) for name, score in open_.items()}
        for name in full:
            left -= sizes[name] - kept[name]
            kept[name] = sizes[name]
            del open_[name]
    return kept
