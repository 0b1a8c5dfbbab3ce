"""Train low-rank products whose ranks are shared out while training: the least important directions are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model.adapted import Part
from lithe.model.lowrank import Singular
from lithe.model.parts import wide_dtype
from lithe.tune.targets import LINEARS, linears

CARD = Card(paper="AdaLoRA (Zhang et al. 2023)", promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    start: int = knob(12, "rank at the beginning, everywhere", low=1, high=4096)
    rank: int = knob(8, "mean rank at the end", low=1, high=4096)
    alpha: int = knob(32, "the product is scaled by alpha / start", low=1, high=1_000_000)
    warm: float = knob(0.1, "share of the steps before ranks fall", low=0, high=1)
    last: float = knob(0.5, "share of the steps after ranks have fallen", low=0, high=1)
    every: int = knob(1, "steps between two rounds of dropping", low=1, high=1_000_000)
    beta1: float = knob(0.85, "smoothing of importance", low=0, high=1)
    beta2: float = knob(0.85, "smoothing of its doubt", low=0, high=1)
    orthogonal: float = knob(0.5, "weight of the penalty that keeps directions orthogonal", low=0, high=1e3)
    dropout: float = knob(0.0, "share of inputs dropped while training", low=0, high=0.99)
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        if knobs.rank > knobs.start:
            raise UsageError(f"ranks fall from start={knobs.start}, so they cannot end at rank={knobs.rank}")
        if knobs.warm + knobs.last > 1:
            raise UsageError(f"warm={knobs.warm} and last={knobs.last} are shares of the steps, more than 1 together")
        self.knobs, self.steps = knobs, 0
        self.smooth: dict[str, Tensor] = {}  # importance of each entry, and how much it wavers: equations 9 and 10
        self.doubt: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}  # directions that are left, by site

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """A and B are normal with deviation 0.02, the values zero, as in the authors' code."""
        k, dtype = self.knobs, wide_dtype(model)
        draw = lambda *shape: torch.randn(*shape, generator=dice, dtype=dtype) * 0.02
        return {site: Singular(draw(k.start, layer.in_features), draw(layer.out_features, k.start),
                               torch.zeros(k.start, dtype=dtype), k.alpha, k.start, dropout=k.dropout)
                for site, layer in linears(model, k.targets).items()}

    def size(self, model: Any) -> int:
        return sum(self.knobs.start * (layer.in_features + layer.out_features + 1)
                   for layer in linears(model, self.knobs.targets).values())

    def begin(self, parts: dict[str, Any], steps: int) -> None:
        self.steps = steps

    def penalty(self, parts: dict[str, Any]) -> Tensor:
        """Mean over the factors of |A A^T - 1| and |B^T B - 1|, Frobenius norms (squared in equation 4, not in the code)."""
        grams = [gram for part in parts.values() for gram in (part.a @ part.a.T, part.b.T @ part.b)]
        return self.knobs.orthogonal * torch.stack([torch.linalg.norm(g - torch.eye(len(g)).to(g)) for g in grams]).mean()

    @torch.no_grad()
    def observe(self, parts: dict[str, Any], step: int) -> None:
        if step >= self._falling()[1]:
            return
        for name, weight in _entries(parts):
            if weight.grad is None:
                continue
            now = (weight * weight.grad).abs()
            zero = torch.zeros_like(now)
            old = self.smooth.get(name, zero)
            mean = self.smooth[name] = self.knobs.beta1 * old + (1 - self.knobs.beta1) * now
            self.doubt[name] = self.knobs.beta2 * self.doubt.get(name, zero) + (1 - self.knobs.beta2) * (now - mean).abs()

    @torch.no_grad()
    def update(self, parts: dict[str, Any], step: int, optimizers: Any) -> None:
        """Keep the most important directions of the whole model, fewer and fewer (equation 12); then always the same."""
        first, end = self._falling()
        if first < step <= end and (step % self.knobs.every == 0 or step == end) and self.smooth:
            left = 1 - (step - first) / max(1, end - first)
            budget = round(len(parts) * (self.knobs.rank + (self.knobs.start - self.knobs.rank) * left**3))
            scores = {site: self._score(site) for site in parts}
            least = torch.cat(list(scores.values())).topk(budget).values[-1]
            self.kept = {site: score >= least for site, score in scores.items()}
            for site, part in parts.items():
                part.values.mul_(self.kept[site])
        elif step > end:
            for site, kept_R in self.kept.items():
                parts[site].values.mul_(kept_R)

    def finish(self, parts: dict[str, Any]) -> None:
        """Drop the directions whose values are zero for good."""
        for site, kept_R in self.kept.items():
            parts[site].keep(kept_R)
        self.kept = {}

    def state(self) -> dict[str, Tensor]:
        held = {"smooth": self.smooth, "doubt": self.doubt, "kept": self.kept}
        return {f"{kind}:{name}": tensor for kind, tensors in held.items() for name, tensor in tensors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        for key, tensor in state.items():
            kind, _, name = key.partition(":")
            getattr(self, kind)[name] = tensor

    def _falling(self) -> tuple[int, int]:
        """The steps after which ranks begin to fall, and at which they have fallen."""
        return int(self.knobs.warm * self.steps), self.steps - int(self.knobs.last * self.steps)

    def _score(self, site: str) -> Tensor:
        """Importance of each direction: its value's, and the means over its two vectors (equation 8)."""
        a_RK, b_NR, values_R = (self.smooth[f"{site}/{name}"] * self.doubt[f"{site}/{name}"] for name in ("a", "b", "values"))
        return values_R + a_RK.mean(1) + b_NR.mean(0)


def _entries(parts: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(f"{site}/{name}", weight) for site, part in parts.items() for name, weight in part.named_parameters()]
