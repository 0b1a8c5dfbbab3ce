"""Train keys and values of a few rows that every layer sees before the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lithe.card import Card, knob
from lithe.model.adapted import Part
from lithe.model.parts import wide_dtype
from lithe.model.prefixed import Prefix

CARD = Card(paper="Prefix tuning (Li and Liang 2021)", promises=("touches_only",), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rows: int = knob(16, "rows before the text", low=1, high=65536)
    deviation: float = knob(0.02, "of the normal law that keys and values start from", low=0, high=100)


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """Learnt directly: the paper's network that makes them only steadies training, and is dropped after it."""
        draw = lambda *shape: torch.randn(*shape, generator=dice, dtype=wide_dtype(model)) * self.knobs.deviation
        return {site: Prefix(draw(G, self.knobs.rows, D), draw(G, self.knobs.rows, D)) for site, G, D in _shapes(model)}

    def size(self, model: Any) -> int:
        return sum(2 * G * self.knobs.rows * D for _, G, D in _shapes(model))


def _shapes(model: Any) -> list[tuple[str, int, int]]:
    layers = [(i, model.config.layer(i)) for i in range(model.config.layers)]
    return [(f"layers.{i}.self_attn", layer.kv_heads, layer.head_dim) for i, layer in layers if layer.heads]
