"""Train the matrices with the smallest condition number, which say least of what was learned before; freeze the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model import corpus
from lithe.model.adapted import Part
from lithe.model.lowrank import LowRank
from lithe.model.parts import wide_dtype
from lithe.model.sliced import Whole
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units", row=51,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    count: int = knob(20, "how many matrices are trained", low=1, high=1_000_000)
    share: float = knob(0.0, "train at most this share of the model's weights: whole matrices as long as they fit, or low-rank "
                             "products of the rank that fits beside `count` of them; 0: count and rank decide", low=0, high=1)
    measure: str = knob("kappa", "what a matrix is ranked by: s_max / s_min; the same at 1 % from both ends; or its lesser "
                                 "side over its effective rank", choices=("kappa", "quantile", "rank"))
    order: str = knob("low", "which end is trained; the others are controls", choices=("low", "high", "random"))
    part: str = knob("whole", "train all of a matrix, or a low-rank product beside it", choices=("whole", "low_rank"))
    rank: int = knob(16, "of the product", low=1, high=65536)
    alpha: float = knob(2.0, "the product is scaled by this, whatever its rank", low=0, high=1e6)
    widest: int = knob(16384, "matrices with a longer side are left out", low=1, high=1 << 40)
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """Whole matrices begin at zero, low-rank products as LoRA's do."""
        dtype = wide_dtype(model)
        layers = self._chosen(model, dice)
        rank = self._rank(model, layers)
        parts: dict[str, Part] = {}
        for site, layer in layers.items():
            shape = (layer.out_features, layer.in_features)
            if self.knobs.part == "whole":
                parts[site] = Whole(torch.zeros(shape, dtype=dtype))
            else:
                a_RK = (torch.rand(rank, shape[1], generator=dice, dtype=dtype) * 2 - 1) * shape[1] ** -0.5
                parts[site] = LowRank(a_RK, torch.zeros(shape[0], rank, dtype=dtype), self.knobs.alpha * rank)
        return parts

    def size(self, model: Any) -> int:
        """Which matrices are chosen depends on their values; for order=random, on the dice: those of seed 0."""
        layers = self._chosen(model, torch.Generator().manual_seed(0))
        if self.knobs.part == "whole":
            return sum(layer.in_features * layer.out_features for layer in layers.values())
        return self._rank(model, layers) * sum(layer.in_features + layer.out_features for layer in layers.values())

    def _chosen(self, model: Any, dice: torch.Generator) -> dict[str, Any]:
        k = self.knobs
        layers = {site: layer for site, layer in linears(model, k.targets).items()
                  if max(layer.in_features, layer.out_features) <= k.widest}
        if not layers:
            raise UsageError(f"every matrix has a side of more than widest={k.widest}: nothing would be trained")
        if k.order == "random":
            ranked = [list(layers)[i] for i in torch.randperm(len(layers), generator=dice).tolist()]
        else:
            values = conditions(layers, k.measure)
            ranked = sorted(layers, key=lambda site: values[site], reverse=k.order == "high")
        chosen = ranked[: k.count]
        if k.part == "whole" and k.share:
            chosen, left = [], k.share * model.size
            for site in ranked:
                if (size := layers[site].in_features * layers[site].out_features) <= left:
                    chosen.append(site)
                    left -= size
            if not chosen:
                raise UsageError(f"share={k.share} of the weights is less than the smallest matrix; take part=low_rank")
        return {site: layers[site] for site in layers if site in set(chosen)}

    def _rank(self, model: Any, layers: dict[str, Any]) -> int:
        k = self.knobs
        if not k.share or k.part == "whole":
            return k.rank
        rank = int(k.share * model.size / sum(layer.in_features + layer.out_features for layer in layers.values()))
        if not rank:
            raise UsageError(f"share={k.share} is less than rank 1 beside {len(layers)} matrices: take a smaller count")
        return rank


def conditions(layers: dict[str, Any], measure: str) -> dict[str, float]:
    """What each layer's matrix is ranked by, from its singular values, which are kept in the user's cache. The less, the more
    alike all directions are.
    """
    weights = {site: layer.weight.detach() for site, layer in layers.items()}
    key = hashlib.sha256(b"singular values 1")
    for site, weight in weights.items():
        key.update(f"{site} {tuple(weight.shape)} {weight.dtype}".encode())
        key.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    make = lambda: {site: torch.linalg.svdvals(weight.double()).cpu().numpy() for site, weight in weights.items()}
    found = corpus.kept(key.hexdigest(), make)
    return {site: MEASURES[measure](torch.from_numpy(np.array(found[site]))) for site in layers}


def kappa(values_S: Tensor, cut: float = 0.0) -> float:
    """Largest over least singular value, a share `cut` of them left out at both ends; infinite where the least is zero."""
    out = int(cut * len(values_S))
    largest, least = float(values_S[out]), float(values_S[len(values_S) - 1 - out])
    return largest / least if least > 0 else float("inf")


def evenness(values_S: Tensor) -> float:
    """Number of singular values over the effective rank, exp of the entropy of their squares: 1 where all are equal."""
    share_S = values_S.square() / values_S.square().sum().clamp(min=torch.finfo(values_S.dtype).tiny)
    return len(values_S) / float(torch.special.entr(share_S).sum().exp())


MEASURES: dict[str, Callable[[Tensor], float]] = {"kappa": kappa, "quantile": lambda values: kappa(values, 0.01),
                                                  "rank": evenness}
