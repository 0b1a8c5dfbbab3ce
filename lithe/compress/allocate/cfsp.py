"""Blocks that move the residual stream further keep more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.compress import solve
from lithe.compress.allocation import Plan, Problem

CARD = Card(paper="CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information", row=1,
            needs=("inputs",), promises=("meets_budget",))
MARGIN = 0.95  # of the room to 1 that the largest share may take


@dataclass(frozen=True, kw_only=True)
class Knobs:
    metric: str = knob("angular", "how far a block moves the stream", choices=("angular", "cosine", "mse", "mae"))
    strength: float = knob(1.0, "how much shares follow it; 0 is uniform", low=0, high=100)


class Method:
    """keep = sigmoid(a z) / mean * (1 - p), z being the block's score over the mean score, less 1 (section 3.2)."""

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        scores = problem.block_scores(self.knobs.metric)
        mean = sum(scores) / len(scores) or 1.0
        gates = {g.name: 1 / (1 + math.exp(-self.knobs.strength * (scores[g.layer] / mean - 1))) for g in problem.groups}
        return solve.at_shares(problem, shares(gates, problem.share))


def shares(gates: dict[str, float], share: float) -> dict[str, float]:
    """Shares in proportion to the gates, of this mean; where one would pass 1, all deviations shrink alike."""
    mean = sum(gates.values()) / len(gates)
    over = max(gates.values()) / mean * share - share
    shrink = min(1.0, MARGIN * (1 - share) / over) if over > 1 - share else 1.0
    return {name: share + shrink * (gate / mean * share - share) for name, gate in gates.items()}
