"""The units that score least go first, wherever in the model they are."""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.compress import solve
from lithe.compress.allocation import Plan, Problem

CARD = Card(paper="Global top-k", promises=("meets_budget",))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    def __init__(self, knobs: Knobs):
        pass

    def solve(self, problem: Problem) -> Plan:
        return solve.ranked(problem)
