"""The plan of least summed loss, each group's measured alone, by an integer program that is solved to the end."""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.compress import solve
from lithe.compress.allocation import Plan, Problem
from lithe.errors import UsageError

CARD = Card(paper="Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming", row=162,
            promises=("meets_budget",), needs=("loss",))
USUAL = ("bits", "site")  # units of steps that it deals out where they name no allocation


@dataclass(frozen=True, kw_only=True)
class Knobs:
    seconds: float = knob(60.0, "most time for the program", low=1)
    tokens: int = knob(2048, "of calibration that the loss of each option is measured on; 0: all", low=0)
    reverse: bool = knob(False, "give most to the groups that lose least: the negative control")


class Method:
    """Least sum of loss changes, those below 0 counted as 0, one option a group (Hubara et al. 2021, section 3.2)."""

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        errors = {name: [max(0.0, error) for error in found] for name, found in problem.errors(self.knobs.tokens).items()}
        if self.knobs.reverse:  # the errors of the most sensitive group to the least, and so on
            order = sorted(errors, key=lambda name: sum(errors[name]))
            if len({len(found) for found in errors.values()}) > 1:
                raise UsageError("reverse swaps the errors of groups, which must all have as many options")
            errors = {name: errors[other] for name, other in zip(order, reversed(order), strict=True)}
        return solve.best_sum(problem, errors, self.knobs.seconds)
