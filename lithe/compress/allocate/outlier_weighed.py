"""Blocks with more outliers among their scores keep more."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.compress import solve
from lithe.compress.allocation import Plan, Problem

CARD = Card(paper="Outlier Weighed Layerwise Sparsity (OWL)", promises=("meets_budget",))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    times: float = knob(5.0, "an outlier's score is more than this times its block's mean", low=1)
    spread: float = knob(0.08, "a block's share is at most this far from the one asked for", low=0, high=0.5)


class Method:
    """Yin et al. 2024, section 3: shares between S - spread and S + spread, in the order of the blocks' shares of outliers."""

    grain = 100  # levels that entries are dealt in

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def solve(self, problem: Problem) -> Plan:
        problem.check()
        layers = sorted({group.layer for group in problem.groups})
        found = []
        for layer in layers:
            own = [problem.unit_scores[group.name] for group in problem.groups if group.layer == layer]
            flat = torch.cat([score.double().flatten() for score in own])
            found.append(float((flat > self.knobs.times * flat.mean()).double().mean()))
        share = torch.tensor(found, dtype=torch.float64)
        share = (share - share.min()) / (share.max() - share.min()).clamp(min=1e-30) * 2 * self.knobs.spread
        kept = dict(zip(layers, (share - share.mean() + problem.share).clamp(0, 1).tolist(), strict=True))
        problem.notes |= {"outliers": {str(layer): round(one, 6) for layer, one in zip(layers, found, strict=True)}}
        return solve.at_shares(problem, {group.name: kept[group.layer] for group in problem.groups})
