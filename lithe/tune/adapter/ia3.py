"""Train one number for each key, each value and each inner unit of the FFN: they are multiplied by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lithe.card import Card, knob
from lithe.model.adapted import Part
from lithe.model.parts import Scale, wide_dtype
from lithe.tune.targets import linears

CARD = Card(paper="(IA)³ (Liu et al. 2022)", promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    outputs: tuple[str, ...] = knob(("k_proj", "v_proj"), "linear layers whose outputs are scaled, joined by +")
    inputs: tuple[str, ...] = knob(("down_proj",), "linear layers whose inputs are scaled, joined by +")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        ones = lambda n: torch.ones(n, dtype=wide_dtype(model))
        return {site: Scale(ones(n), where) for site, (n, where) in self._widths(model).items()}

    def size(self, model: Any) -> int:
        return sum(n for n, _ in self._widths(model).values())

    def _widths(self, model: Any) -> dict[str, tuple[int, str]]:
        found = {site: (layer.out_features, "out") for site, layer in linears(model, self.knobs.outputs).items()}
        return found | {site: (layer.in_features, "in") for site, layer in linears(model, self.knobs.inputs).items()}
