"""Units whose score is least among those of their block go first, wherever they are: scores are compared as z-scores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lithe.card import Card
from lithe.compress import solve
from lithe.compress.allocation import Plan, Problem

CARD = Card(paper="Fluctuation-based Adaptive Structured Pruning for Large Language Models (FLAP)", promises=("meets_budget",))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """An et al. 2024, section 4.2."""

    def __init__(self, knobs: Knobs):
        pass

    def solve(self, problem: Problem) -> Plan:
        return solve.ranked(problem, {name: standard(score_U) for name, score_U in problem.unit_scores.items()})


def standard(score_U: Tensor) -> Tensor:
    """z-scores."""
    wide_U = score_U.double()
    return (wide_U - wide_U.mean()) / wide_U.std(correction=0).clamp(min=1e-30)
