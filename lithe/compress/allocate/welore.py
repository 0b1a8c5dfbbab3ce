"""One threshold for the singular values of all matrices; those that keep half of their ranks or more stay dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.allocation import Option, Plan, Problem
from lithe.compress.groups import Level
from lithe.errors import UnsupportedError, UsageError

CARD = Card(paper="From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", row=145,
            promises=("meets_budget",))
HALVINGS = 50  # of the interval that holds tau
UNITS = ("rank", "channel", "head")  # levels that count units


@dataclass(frozen=True, kw_only=True)
class Knobs:
    by: str = knob("bytes", "what the budget is a share of: stored bytes, or all ranks, those below tau in matrices that stay "
                            "dense among them, as the paper counts", choices=("bytes", "ranks"))
    min_ratio: float = knob(0.4999, "a matrix stays dense unless more than this share of its ranks is below tau", low=0, high=1)


class Method:
    """Jaiswal et al. 2024, sections 3.1 and 3.2: tau by bisection, the least that meets the budget.

    Ours: bytes that it leaves, a matrix that becomes a pair being its step, go to pairs by a lower threshold of their own.
    """

    every_rank = True

    def __init__(self, knobs: Knobs):
        self.by, self.min_ratio = knobs.by, knobs.min_ratio

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        if strange := {group.unit for group in problem.groups} - set(UNITS):
            raise UnsupportedError(f"one threshold for all decides on ranks, channels or heads, not on {', '.join(strange)}")
        scores = {name: _normalised(score_U) for name, score_U in problem.unit_scores.items()}
        total = sum(score_U.numel() for score_U in scores.values())
        gone = lambda tau: sum(int((score_U < tau).sum()) for score_U in scores.values()) / total
        if self.by == "ranks":
            wanted = 1 - problem.share
            tau = least(lambda tau: gone(tau) >= wanted)
        else:
            tau = least(lambda tau: problem.cost(self._plan(problem, scores, tau)) <= problem.budget * (1 + 1e-9))
        plan = self._plan(problem, scores, tau)
        pairs = {name for name, options in problem.options.items() if plan[name] != options[-1].level}
        problem.notes |= {"tau": tau, "ranks_below": round(gone(tau), 6), "pairs": len(pairs)}
        if self.by == "ranks":
            problem.budget = problem.cost(plan)  # what it comes to in bytes
            return plan
        richer = lambda tau: plan | {name: self._pair(problem.options[name], scores[name], tau) for name in pairs}
        problem.notes["tau_of_pairs"] = least(lambda tau: problem.cost(richer(tau)) <= problem.budget * (1 + 1e-9))
        return richer(problem.notes["tau_of_pairs"])

    def _plan(self, problem: Problem, scores: dict[str, Tensor], tau: float) -> Plan:
        return {name: self._level(options, scores[name], tau) for name, options in problem.options.items()}

    def _level(self, options: list[Option], score_U: Tensor, tau: float) -> Level:
        """The richest option of no more units than reach tau, or the group as it is."""
        dense = 1 - int((score_U >= tau).sum()) / score_U.numel() <= self.min_ratio
        return options[-1].level if dense else self._pair(options, score_U, tau)

    @staticmethod
    def _pair(options: list[Option], score_U: Tensor, tau: float) -> Level:
        """The richest option but the group as it is of no more units than reach tau."""
        kept = int((score_U >= tau).sum())
        fits = [option for option in options[:-1] if isinstance(option.level, int | float) and option.level <= kept]
        return fits[-1].level if fits else options[0].level


def least(met: Callable[[float], bool]) -> float:
    """The least tau in [0, 1] that meets, by bisection; raises UsageError where none does."""
    if met(0.0):
        return 0.0
    if not met(1.0):
        raise UsageError("the budget cannot be met: matrices that keep a rank, or stay dense, take more even with tau at 1")
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high


def _normalised(score_U: Tensor) -> Tensor:
    wide_U = score_U.double()
    return (wide_U - wide_U.min()) / (wide_U.max() - wide_U.min()).clamp(min=1e-30)
