"""Each layer by itself keeps the most that fits its share; nothing is handed on: of rank N K (1 - ratio) / (N + K)."""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.compress.allocation import Plan, Problem
from lithe.compress.solve import SLACK
from lithe.errors import UsageError

CARD = Card(paper="PELA: Learning Parameter-Efficient Models with Low-Rank Approximation", row=102, promises=("meets_budget",))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """The rank of the authors' code, d_in d_out / (c (d_in + d_out)) rounded down, with c = 1 / (1 - ratio)."""

    every_rank = True

    def __init__(self, knobs: Knobs):
        pass

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        plan: Plan = {}
        for name, options in problem.options.items():
            fits = [option for option in options if option.cost <= problem.share * options[-1].cost * (1 + SLACK)]
            if not fits:
                raise UsageError(f"the budget cannot be met: {name} takes {options[0].cost:,.0f} bytes at least, more than its "
                                 f"share of {problem.share * options[-1].cost:,.0f}")
            plan[name] = fits[-1].level
        return plan
