"""Train biases only; layers that have none get one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lithe.card import Card, knob
from lithe.model.adapted import Part
from lithe.model.parts import Shift, wide_dtype
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="BitFit (Ben Zaken et al. 2021)", promises=("zero_at_start", "merge_equals_wrap", "touches_only"),
            trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        return {site: Shift(torch.zeros(layer.out_features, dtype=wide_dtype(model)))
                for site, layer in linears(model, self.knobs.targets).items()}

    def size(self, model: Any) -> int:
        return sum(layer.out_features for layer in linears(model, self.knobs.targets).values())
