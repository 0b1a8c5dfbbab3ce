"""Train whole heads and FFN channels: a few columns of what writes to the residual stream, as small dense matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model.adapted import Part
from lithe.model.parts import wide_dtype
from lithe.model.site import Site
from lithe.model.sliced import Slice
from lithe.train import stats
from lithe.train.sample import sample
from lithe.tune.targets import linears, plain_module

CARD = Card(paper="S²FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity", row=6,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)
CUTS = {"o": ("o_proj", "in"), "down": ("down_proj", "in"), "v": ("v_proj", "out"), "up": ("up_proj", "out")}
NEED_TEXT = ("activation", "product", "gradient")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    o: float = knob(0.052, "share of all heads whose columns of the attention's output matrix are trained", low=0, high=1)
    down: float = knob(0.02, "share of all FFN channels whose columns of the FFN's output matrix are trained", low=0, high=1)
    v: float = knob(0.0, "share of all key-value heads whose rows of the value matrix are trained", low=0, high=1)
    up: float = knob(0.0, "share of all FFN channels whose rows of the up matrix are trained", low=0, high=1)
    share: float = knob(0.0, "train this share of the model's weights, o and down alike, instead; 0: as they say", low=0,
                        high=1)
    select: str = knob("random", "what is trained", choices=("random", "weight", *NEED_TEXT))
    smallest: bool = knob(False, "select the smallest, not the largest, of what `select` measures")
    corpus: str = knob("", "text that activations and gradients are measured on")
    rows: int = knob(16, "rows of it that are looked at", low=1, high=65536)
    length: int = knob(256, "tokens of such a row", low=2, high=1_000_000)


@dataclass(frozen=True)
class Cut:
    """The units of one kind of layer: `width` neighbouring columns (or rows) of each matrix are one unit."""

    where: str  # "in": columns, "out": rows
    width: int
    layers: dict[str, Any]  # by site

    def units(self, layer: Any) -> int:
        return (layer.in_features if self.where == "in" else layer.out_features) // self.width

    def values(self, layer: Any) -> int:
        return self.width * (layer.out_features if self.where == "in" else layer.in_features)


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        if knobs.select in NEED_TEXT and not knobs.corpus:
            raise UsageError(f"select={knobs.select} measures the model on a text: give corpus=FILE")
        self.knobs = knobs

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """All matrices begin at zero. A site of which nothing is chosen has no part."""
        parts: dict[str, Part] = {}
        for name, (cut, count) in self._plan(model).items():
            chosen = self._random(cut, count, dice) if self.knobs.select == "random" else self._scored(model, name, cut, count)
            for site, units in chosen.items():
                layer = cut.layers[site]
                places_S = (units[:, None] * cut.width + torch.arange(cut.width)).flatten()
                shape = (layer.out_features, len(places_S)) if cut.where == "in" else (len(places_S), layer.in_features)
                parts[site] = Slice(torch.zeros(shape, dtype=wide_dtype(model)), places_S, cut.where)
        return parts

    def size(self, model: Any) -> int:
        return sum(count * cut.values(next(iter(cut.layers.values()))) for cut, count in self._plan(model).values())

    def _plan(self, model: Any) -> dict[str, tuple[Cut, int]]:
        """How many units of each kind are trained, all layers together."""
        k = self.knobs
        cuts: dict[str, Cut] = {}
        shares = {"o": k.o, "down": k.down, "v": k.v, "up": k.up}
        for name, share in shares.items():
            if share or (k.share and name in ("o", "down")):
                target, where = CUTS[name]
                layers = linears(model, [target])
                cut = Cut(where, self._width(model, name), layers)
                if len({cut.values(layer) for layer in layers.values()}) > 1:
                    raise UsageError(f"the {target} of this model differ in width, and units are drawn from all together")
                cuts[name] = cut
        total = {name: sum(map(cut.units, cut.layers.values())) for name, cut in cuts.items()}
        counts = {name: round(shares[name] * total[name]) for name in cuts}
        if k.share:
            one = {name: cuts[name].values(next(iter(cuts[name].layers.values()))) for name in ("o", "down")}
            budget = round(k.share * model.size)
            counts["o"] = min(total["o"], round(budget / (total["o"] * one["o"] + total["down"] * one["down"]) * total["o"]))
            counts["down"] = min(total["down"], max(0, round((budget - counts["o"] * one["o"]) / one["down"])))
        if not any(counts.values()):
            raise UsageError("these shares are less than one head and one channel of the whole model: nothing would be trained")
        return {name: (cuts[name], count) for name, count in counts.items() if count}

    @staticmethod
    def _width(model: Any, name: str) -> int:
        """Columns or rows of a unit: those of a head, or one channel."""
        return model.config.head_dim if name in ("o", "v") else 1

    @staticmethod
    def _random(cut: Cut, count: int, dice: torch.Generator) -> dict[str, Tensor]:
        """Drawn from the units of all layers together, so that layers get unequal numbers."""
        drawn = torch.randperm(sum(map(cut.units, cut.layers.values())), generator=dice)[:count].sort().values
        chosen: dict[str, Tensor] = {}
        first = 0
        for site, layer in cut.layers.items():
            own = drawn[(drawn >= first) & (drawn < first + cut.units(layer))] - first
            chosen |= {site: own} if len(own) else {}
            first += cut.units(layer)
        return chosen

    def _scored(self, model: Any, name: str, cut: Cut, count: int) -> dict[str, Tensor]:
        """The best of each layer, as many in each: what is measured has another scale in every layer."""
        scores = self._scores(model, cut)
        chosen: dict[str, Tensor] = {}
        layers = len(cut.layers)
        for number, (site, layer) in enumerate(cut.layers.items()):
            own = min(cut.units(layer), (number + 1) * count // layers - number * count // layers)
            if own:
                chosen[site] = scores[site].topk(own, largest=not self.knobs.smallest).indices.sort().values.cpu()
        return chosen

    @torch.no_grad()
    def _scores(self, model: Any, cut: Cut) -> dict[str, Tensor]:
        """What `select` measures, for each unit of each site."""
        across = 0 if cut.where == "in" else 1
        norm = lambda matrix: _units(matrix.float().square().sum(across), cut.width)
        weights = lambda: {site: norm(plain_module(model, site).weight) for site in cut.layers}
        if self.knobs.select == "weight":
            return weights()
        batches = sample(model, self.knobs.corpus, rows=self.knobs.rows, length=self.knobs.length)
        if self.knobs.select == "gradient":
            with torch.enable_grad():
                squares = stats.fisher(model, batches, [Site(site, model) for site in cut.layers])
            return {site: _units(square.sum(across), cut.width) for site, square in squares.items()}
        if cut.where == "out":
            raise UsageError(f"select={self.knobs.select} weighs columns by what they read; rows of v and up have none: "
                             "leave them at 0, or select by weight or gradient")
        local = sorted({site.split(".", 2)[2] for site in cut.layers})
        read = {f"layers.{number}.{name}": _units(inputs.square_K, cut.width)
                for number, found in stats.walk(model, batches, local, moments=False) for name, inputs in found.items()}
        if self.knobs.select == "activation":
            return read
        return {site: weight * read[site] for site, weight in weights().items()}


def _units(squares: Tensor, width: int) -> Tensor:
    """The norm of each unit from the squares of its columns."""
    return squares.view(-1, width).sum(1).sqrt()
