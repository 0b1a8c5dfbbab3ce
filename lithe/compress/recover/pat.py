"""The residual stream narrows while the model is tuned: one mask for all blocks is learned with low-rank parts, then folded in.

Axes: C residual channels, R rank of what turns them, L rank of the tuning parts, K inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress import residual
from lithe.compress.calibrate import Calibration
from lithe.compress.masking import best
from lithe.compress.recovery import attach, merge
from lithe.model.adapted import Below, Part
from lithe.model.decoder import Decoder
from lithe.model.lowrank import LowRank
from lithe.train.batches import Batch
from lithe.train.loss import next_token

CARD = Card(paper="PAT: Pruning-Aware Tuning for Large Language Models", row=161, promises=("zero_at_start",), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ratio: float = knob(0.25, "share of the residual width that goes", low=0, high=0.95)
    steps: int = knob(300, "of training on the calibration text", low=0)
    rate: float = knob(5e-5, "peak learning rate", low=0)
    rank: int = knob(20, "of the tuning parts", low=1)
    alpha: float = knob(4.0, "their scale, over the rank", low=0)
    turn: int = knob(0, "rank of what turns the stream before the mask; 0: a twentieth of its width", low=0)
    freeze: float = knob(0.8, "part of the steps after which the mask is final", low=0, high=1)
    mask_gain: float = knob(100.0, "how much faster the mask moves than the rest", low=0)
    budget: float = knob(10.0, "weight of the distance from the width asked for", low=0)
    pull: float = knob(1.0, "weight of the pull of the mask's values to plus and minus a half", low=0)
    identity: float = knob(1.0, "weight of W1 W1^T near 1", low=0)


class Mask(nn.Module):
    """s = sigmoid(T m) + offset, the same channels for all sites. T grows with the steps and the offset falls from a half."""

    def __init__(self, width: int, gain: float, dtype: torch.dtype):
        super().__init__()
        self.m, self.gain = nn.Parameter(torch.zeros(width, dtype=dtype)), gain
        self.done, self.kept_C = 0.0, None  # type: float, Tensor | None

    @property
    def value(self) -> Tensor:
        """s [C]: ones at the start, zeros and ones at the end."""
        if self.kept_C is not None:
            return torch.zeros_like(self.m).index_fill(0, self.kept_C, 1.0).detach()
        sharp = 1 / max(1 - self.done, 1e-6)
        return torch.sigmoid(sharp * self.gain * self.m) + 0.5 * (1 - self.done)

    def losses(self, target: int, budget: float, pull: float) -> Tensor:
        """The distance of the count from the target, straight through, and the pull of values to +-1/2."""
        if self.kept_C is not None:  # no gradient at all: a zero one would still move it by its momentum
            return torch.zeros((), dtype=self.m.dtype)
        m_C = self.gain * self.m
        soft = torch.sigmoid(m_C)
        count = ((m_C >= 0).to(soft) + soft - soft.detach()).sum()
        half = torch.where(m_C >= 0, 0.5, -0.5)
        return budget * (count - target).abs() / target + pull * (m_C - half).square().mean()


class Sparsified(Part):
    """What a site writes to the stream: with a tuning part (a, b), then s * (h + W2 W1 h)."""

    kind = "sparsified"

    def __init__(self, mask: Mask, lora: LowRank | None, w1_RC: Tensor):
        super().__init__()
        self.shared = [mask]  # in a list, so that it is no module of every site
        self.lora, self.w1 = lora, nn.Parameter(w1_RC)
        self.w2 = nn.Parameter(torch.zeros(w1_RC.shape[1], w1_RC.shape[0], dtype=w1_RC.dtype))

    def turned(self, h: Tensor) -> Tensor:
        return self.shared[0].value * (h + F.linear(F.linear(h, self.w1), self.w2))

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        return self.turned(y if self.lora is None else self.lora.after(x, y, below))

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.lora is not None:
            weight_NK = weight_NK + self.lora.matrix().to(weight_NK)
        return self.turned(weight_NK.mT).mT, None if bias_N is None else self.turned(bias_N)

    def apart(self) -> Tensor:
        """How far W1 W1^T is from 1."""
        gram_RR = self.w1 @ self.w1.mT
        return (gram_RR - torch.eye(len(gram_RR), dtype=gram_RR.dtype)).square().mean()


class Embedded(nn.Module):
    """An embedding whose rows go through the mask, and turned where the head does not share them."""

    def __init__(self, base: nn.Embedding, mask: Mask, part: Sparsified | None):
        super().__init__()
        self.base, self.mask, self.part = base, mask, part

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.masked(self.base(ids))

    def masked(self, h: Tensor) -> Tensor:
        return self.mask.value * h if self.part is None else self.part.turned(h)


class Method:
    """Hybrid sparsification modules after the embedding, every attention and every FFN (Liu et al. 2025, section 3)."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        residual.check(model)
        width, dtype, dice = model.config.width, model.dtype, torch.Generator().manual_seed(seed)
        self.mask = Mask(width, self.knobs.mask_gain, dtype)
        rank = self.knobs.turn or max(1, width // 20)
        draw = lambda rows, columns: torch.randn(rows, columns, generator=dice, dtype=dtype) / math.sqrt(columns)
        parts: dict[str, Part] = {}
        for name, found in model.named_modules():
            if isinstance(found, nn.Linear) and name.startswith("layers."):
                lora = LowRank(draw(self.knobs.rank, found.in_features),
                               torch.zeros(found.out_features, self.knobs.rank, dtype=dtype), self.knobs.alpha)
                writes = name.endswith(residual.WRITE)
                parts[name] = Sparsified(self.mask, lora, draw(rank, width)) if writes else lora
        self.sites = [part for part in parts.values() if isinstance(part, Sparsified)]
        self.start = None if model.config.tied else Sparsified(self.mask, None, draw(rank, width))
        self.sites += [] if self.start is None else [self.start]
        weights = attach(model, parts)
        model.embed_tokens = Embedded(model.embed_tokens, self.mask, self.start)  # type: ignore[assignment,arg-type]
        return weights + list(self.mask.parameters()) + ([] if self.start is None else list(self.start.parameters()))

    def at(self, step: int) -> None:
        """What the mask is at a step: sharper and sharper, then final at exactly the width asked for."""
        self.mask.done = min(1.0, math.log(step + 1) / math.log(max(self.steps, 2)))
        if self.steps and step >= self.knobs.freeze * self.steps and self.mask.kept_C is None:
            self._fix()

    def _fix(self) -> None:
        width = len(self.mask.m)
        self.mask.kept_C = best(self.mask.m.detach(), residual.target(width, self.knobs.ratio))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The text's, and a token's worth of those of mask and parts."""
        self.at(int(batch["step"]))
        total, tokens = next_token(model, {name: batch[name] for name in ("ids_BT", "targets_BT")})
        target = residual.target(len(self.mask.m), self.knobs.ratio)
        apart = torch.stack([site.apart() for site in self.sites]).mean()
        beside = self.mask.losses(target, self.knobs.budget, self.knobs.pull) + self.knobs.identity * apart
        return total + tokens * beside, tokens

    def finish(self, model: Decoder) -> Decoder:
        """All parts merged, the channels that are zero left out."""
        if self.mask.kept_C is None:
            self._fix()
        assert self.mask.kept_C is not None
        merge(model)
        outer: Any = model.embed_tokens
        with torch.no_grad():
            outer.base.weight.copy_(outer.masked(outer.base.weight))
        model.embed_tokens = outer.base
        return residual.narrowed(model, self.mask.kept_C)


