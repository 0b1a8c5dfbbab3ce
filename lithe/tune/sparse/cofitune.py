"""Train a range of layers only, and there move least what general text needs most: a task learned, the rest kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UnsupportedError, UsageError
from lithe.model.adapted import Part
from lithe.model.parts import wide_dtype
from lithe.model.sliced import Whole
from lithe.train.importance import Units, importance
from lithe.train.sample import sample
from lithe.tune.targets import linears

CARD = Card(paper="Balancing Speciality and Versatility: a Coarse to Fine Framework for SFT of LLMs", row=48,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    first: float = knob(0.25, "where the range of layers begins, as a share of the depth", low=0, high=1)
    last: float = knob(0.5, "where it ends", low=0, high=1)
    targets: tuple[str, ...] = knob(("up_proj", "down_proj"), "linear layers by the end of their name, joined by +")
    corpus: tuple[str, ...] = knob((), "general texts that tell what to keep, joined by +; without one only the range counts")
    mask: tuple[str, ...] = knob(("up_proj", "down_proj"), "which of the targets are moved less where general text needs them")
    where: str = knob("update", "what is made smaller: what the optimizer does, or, as in the authors' code, the gradient it "
                                "sees, which Adam scales back", choices=("update", "grad"))
    dropout: float = knob(0.003, "share of what attention and FFN give that is dropped to see what depends on it", low=0,
                          high=0.9)
    rows: int = knob(32, "rows of each text that are looked at", low=1, high=65536)
    length: int = knob(256, "tokens of such a row", low=2, high=1_000_000)


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        if knobs.first >= knobs.last:
            raise UsageError(f"a range of layers from first={knobs.first} to last={knobs.last} holds none")
        self.knobs = knobs
        self.kept: dict[str, Tensor] = {}  # how much of a row's update is left, [N, 1], by site
        self.before: dict[str, Tensor] = {}  # weights as the step found them

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        layers = self._layers(model)
        if self.knobs.corpus and self.knobs.mask:
            found = self._importance(model, dice)
            self.kept = {site: 1 - rows_of(model, site, found).to(wide_dtype(model))[:, None] for site in layers
                         if site.rpartition(".")[2] in self.knobs.mask}
        return {site: Whole(torch.zeros(layer.out_features, layer.in_features, dtype=wide_dtype(model)))
                for site, layer in layers.items()}

    def size(self, model: Any) -> int:
        return sum(layer.in_features * layer.out_features for layer in self._layers(model).values())

    @torch.no_grad()
    def observe(self, parts: dict[str, Any], step: int) -> None:
        for site, kept_N1 in self.kept.items():
            matrix = parts[site].matrix
            if self.knobs.where == "grad":
                matrix.grad *= kept_N1.to(matrix)
            else:
                self.before[site] = matrix.detach().clone()

    @torch.no_grad()
    def update(self, parts: dict[str, Any], step: int, optimizers: Any) -> None:
        """Take back I of what the optimizer did to a row, its decay included."""
        for site, before in self.before.items():
            matrix = parts[site].matrix
            matrix.copy_(before.lerp(matrix, self.kept[site].to(matrix).expand_as(matrix)))  # exact at both ends
        self.before = {}

    def _layers(self, model: Any) -> dict[str, Any]:
        """The chosen layers' targets, by site."""
        numbers = self._numbers(model)
        every = linears(model, self.knobs.targets)
        found = {site: layer for site, layer in every.items() if int(site.split(".")[1]) in numbers}
        if not found:
            raise UsageError(f"layers {numbers.start} to {numbers.stop - 1} have no {' or '.join(self.knobs.targets)}")
        return found

    def _numbers(self, model: Any) -> range:
        """At least one layer, rounding down."""
        depth = model.config.layers
        first = min(int(self.knobs.first * depth), depth - 1)
        return range(first, max(first + 1, int(self.knobs.last * depth)))

    def _importance(self, model: Any, dice: torch.Generator) -> dict[int, Units]:
        """Of several texts, the most that any of them gives a unit."""
        k = self.knobs
        numbers = self._numbers(model)
        if any(model.config.layer(i).experts for i in numbers):
            raise UnsupportedError("experts have no single set of inner channels to be told apart: leave corpus out")
        found = [importance(model, sample(model, text, rows=k.rows, length=k.length), numbers, dropout=k.dropout, dice=dice)
                 for text in k.corpus]
        most = lambda i: Units(*(torch.stack(each).amax(0) for each in zip(*(one[i].each() for one in found), strict=True)))
        return {i: most(i) for i in numbers}


def rows_of(model: Any, site: str, found: dict[int, Units]) -> Tensor:
    """Importance of each row of a site's weight: of its inner channel, of what the FFN gives, or of its head."""
    number, target = int(site.split(".")[1]), site.rpartition(".")[2]
    units, shape = found[number], model.config.layer(number)
    if target in ("up_proj", "gate_proj"):
        return units.inner_F
    if target == "down_proj":
        return units.outer_C
    if target == "q_proj":
        return units.heads_H.repeat_interleave(shape.head_dim)
    if target in ("k_proj", "v_proj"):  # a key-value head is worth what the best of its group is
        return units.heads_H.view(shape.kv_heads, -1).amax(1).repeat_interleave(shape.head_dim)
    raise UsageError(f"the rows of {target} are no heads or channels: leave it out of mask")
