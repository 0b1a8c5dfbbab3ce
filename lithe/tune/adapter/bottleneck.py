"""Train a small network behind or beside attention and FFN: down, an activation, up, added to what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model.adapted import Part
from lithe.model.modules import ACTIVATIONS
from lithe.model.parts import Bottleneck, wide_dtype

CARD = Card(paper="Adapters (Houlsby et al. 2019; parallel: He et al. 2021)", promises=("zero_at_start", "touches_only"),
            trains=True)
PLACES = {"mlp": ("mlp",), "attention": ("self_attn",), "both": ("self_attn", "mlp")}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    inner: int = knob(16, "inner width", low=1, high=65536)
    where: str = knob("both", "which halves of a layer get one", choices=tuple(PLACES))
    parallel: bool = knob(False, "read what the half reads, not what it gives")
    scale: float = knob(1.0, "factor on what is added", low=-1e3, high=1e3)
    activation: str = knob("relu", "between down and up", choices=tuple(ACTIVATIONS))


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """Down is normal with deviation 0.01 as in Houlsby et al., section 3.6; up starts at zero, so that nothing changes."""
        k, C, dtype = self.knobs, model.config.width, wide_dtype(model)
        zeros = lambda *shape: torch.zeros(*shape, dtype=dtype)
        down = lambda: torch.randn(k.inner, C, generator=dice, dtype=dtype) * 0.01
        return {site: Bottleneck(down(), zeros(k.inner), zeros(C, k.inner), zeros(C), parallel=k.parallel,
                                 activation=k.activation, scale=k.scale) for site in self._sites(model)}

    def size(self, model: Any) -> int:
        return len(self._sites(model)) * (2 * self.knobs.inner * model.config.width + self.knobs.inner + model.config.width)

    def _sites(self, model: Any) -> list[str]:
        shapes = {i: model.config.layer(i) for i in range(model.config.layers)}
        there = {f"layers.{i}.{half}": bool(shape.heads if half == "self_attn" else shape.ffn)
                 for i, shape in shapes.items() for half in PLACES[self.knobs.where]}
        if not any(there.values()):
            raise UsageError(f"this model has no {self.knobs.where} to put a bottleneck behind")
        return [site for site, is_there in there.items() if is_there]
