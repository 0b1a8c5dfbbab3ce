"""Layers, or halves of them, count by how much they turn the residual stream (block influence)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import METRICS, Source
from lithe.compress.groups import Group
from lithe.model.decoder import NONE

CARD = Card(paper="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", needs=("inputs",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    metric: str = knob("cosine", "how far the stream moves", choices=("angular", "cosine", "mse", "mae"))


class Method:
    """1 - cosine of the states before and after (Men et al. 2024, equation 1), in the model as it was."""

    units = ("layer", "half")

    def __init__(self, knobs: Knobs):
        self.metric = METRICS[knobs.metric]

    @torch.no_grad()
    def score(self, group: Group, source: Source) -> Tensor:
        total, tokens = torch.zeros(1, dtype=torch.float64), 0
        for x_BTC in source.stream():
            through = lambda x, skip=(), n=group.layer: source.model(embeds=x, layers=[n], skip=skip, logits=NONE).hidden
            y_BTC = through(x_BTC)
            if group.unit == "half":
                middle_BTC = through(x_BTC, ((group.layer, "mlp"),))
                x_BTC, y_BTC = (x_BTC, middle_BTC) if group.name.endswith("self_attn") else (middle_BTC, y_BTC)
            found = self.metric(x_BTC.flatten(0, 1), y_BTC.flatten(0, 1))
            total, tokens = total + found.double().sum(), tokens + len(found)
        return total / tokens
