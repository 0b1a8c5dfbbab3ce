"""Packed layers while they are trained: what is continuous in them are weights, and codes are chosen anew on request.

Scales are trained as shares of what they were, so that one rate does for all.

Axes: N outputs, K inputs, G groups or vectors of a row, I inputs of one, P candidates.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.compress.rounding import spread
from lithe.errors import UnsupportedError
from lithe.kernels.pack import LEVELS, levels
from lithe.model.linear import PackedLinear
from lithe.model.narrow import RANGES, NarrowLinear, layer, made as packed_of, of_levels

BETA = 0.95  # of the mean square of gradients, as the authors' code has it


class Tuned(nn.Module):
    """What its two forms share. made: the weights of the last pass, which hold their gradient; codes as they are stored."""

    codes: Tensor
    bias: Tensor | None
    start_NG: Tensor
    start_N: Tensor

    def __init__(self, old: PackedLinear, codes: Tensor):
        super().__init__()
        self.in_features, self.out_features, self.kind, self.group = old.in_features, old.out_features, old.kind, old.group
        self.register_buffer("bias", old.bias)
        self.register_buffer("codes", codes)
        self.made: Tensor | None = None
        self.square_NK: Tensor | None = None  # mean square of the gradient
        self.wish_NK: Tensor | None = None  # what of W' - W was not forgotten

    @property
    def weight(self) -> Tensor:
        """The weights [N, K], with a graph to what is trained."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        weight_NK = self.weight.to(x.dtype)
        if torch.is_grad_enabled() and weight_NK.requires_grad:
            weight_NK.retain_grad()
            self.made = weight_NK
        return F.linear(x, weight_NK, None if self.bias is None else self.bias.to(x.dtype))

    @torch.no_grad()
    def choose(self, knobs: Any, step: int, share: float) -> int:
        """The V step; how many codes changed. share: of the peak rate."""
        if self.made is None or self.made.grad is None:
            return 0
        now_NK, gradient_NK = self.weight.detach(), self.made.grad.float()
        square_NK = torch.zeros_like(now_NK) if self.square_NK is None else self.square_NK
        self.square_NK = BETA * square_NK + (1 - BETA) * gradient_NK.square()
        direction_NK = gradient_NK / ((self.square_NK / (1 - BETA**step)).sqrt() + 1e-12)
        wish_NK = -knobs.code_rate * share * now_NK.square().mean().sqrt() * direction_NK
        if self.wish_NK is not None:
            wish_NK = wish_NK + (1 - knobs.decay) * self.wish_NK
        need_P = self.needs(wish_NK).flatten()
        picked_P = need_P.topk(max(1, int(knobs.most * len(need_P)))).indices
        new_P, moved_P = self.nearest(now_NK + wish_NK, now_NK, picked_P)
        different = new_P != self.codes.flatten()[picked_P]
        picked_P, new_P, moved_P = picked_P[different], new_P[different], moved_P[different]
        if knobs.trust and len(picked_P):
            within = moved_P.cumsum(0).sqrt() <= knobs.trust * now_NK.norm()
            within[0] = True
            picked_P, new_P = picked_P[within], new_P[within]
        self.codes.view(-1)[picked_P] = new_P
        self.wish_NK = now_NK + wish_NK - self.weight.detach() if knobs.decay < 1 else None
        return len(picked_P)

    def needs(self, wish_NK: Tensor) -> Tensor:
        """How far each code's weights are from what is wished for, squared."""
        raise NotImplementedError

    def nearest(self, wanted_NK: Tensor, now_NK: Tensor, picked_P: Tensor) -> tuple[Tensor, Tensor]:
        """The codes next to the wanted weights at these places, and the squared way that the weights then go."""
        raise NotImplementedError

    def packed(self) -> PackedLinear:
        """The layer as it is stored."""
        raise NotImplementedError

    def memory(self) -> dict[str, Tensor]:
        """What a run that goes on needs."""
        zero = torch.zeros(self.out_features, self.in_features)
        held = {"square": self.square_NK, "wish": self.wish_NK}
        return {"codes": self.codes} | {name: zero if value is None else value for name, value in held.items()}

    def remember(self, state: dict[str, Tensor]) -> None:
        self.codes.copy_(state["codes"])
        self.square_NK, self.wish_NK = state["square"].clone(), state["wish"].clone()


class Grid(Tuned):
    """Whole numbers and scales of groups: a code is one weight's level."""

    def __init__(self, old: PackedLinear):
        if isinstance(old, NarrowLinear):
            levels_NK, scale_NG = old.narrow.whole().to(torch.int8), old.narrow.field("scale")
        else:
            levels_NK, scale_NG = levels(old.packed, torch.arange(old.out_features))
        super().__init__(old, levels_NK.contiguous())
        self.register_buffer("start_NG", scale_NG.float().contiguous())
        self.stretch_NG = nn.Parameter(torch.zeros_like(self.start_NG))

    @property
    def scale_NG(self) -> Tensor:
        return self.start_NG * (1 + self.stretch_NG)

    @property
    def weight(self) -> Tensor:
        return self.codes.float() * spread(self.scale_NG, self.in_features)

    def needs(self, wish_NK: Tensor) -> Tensor:
        return wish_NK.square()

    def nearest(self, wanted_NK: Tensor, now_NK: Tensor, picked_P: Tensor) -> tuple[Tensor, Tensor]:
        scale_P = spread(self.scale_NG.detach(), self.in_features).flatten()[picked_P]
        safe_P = torch.where(scale_P == 0, 1.0, scale_P)
        new_P = (wanted_NK.flatten()[picked_P] / safe_P).round().clamp(*RANGES[self.kind]).to(torch.int8)
        return new_P, (new_P * scale_P - now_NK.flatten()[picked_P]).square()

    def packed(self) -> PackedLinear:
        return layer(of_levels(self.codes, self.scale_NG.detach().half(), self.kind), self.bias)


class Vectors(Tuned):
    """Codes of vectors in a book, and a scale a row."""

    def __init__(self, old: NarrowLinear):
        super().__init__(old, old.narrow.field("codes").long())
        self.register_buffer("start_N", old.narrow.field("scale").float())
        self.stretch_N = nn.Parameter(torch.zeros_like(self.start_N))
        self.book_CI = nn.Parameter(old.narrow.field("book").float())

    @property
    def scale_N(self) -> Tensor:
        return self.start_N * (1 + self.stretch_N)

    @property
    def weight(self) -> Tensor:
        return F.embedding(self.codes, self.book_CI).flatten(1)[:, : self.in_features] * self.scale_N[:, None]

    def needs(self, wish_NK: Tensor) -> Tensor:
        return self._vectors(wish_NK).square().sum(-1)

    def nearest(self, wanted_NK: Tensor, now_NK: Tensor, picked_P: Tensor) -> tuple[Tensor, Tensor]:
        row_P = picked_P // self.codes.shape[1]
        scale_P1, book_CI = self.scale_N.detach()[row_P, None], self.book_CI.detach()
        safe_P1 = torch.where(scale_P1 == 0, 1.0, scale_P1)
        wanted_PI = self._vectors(wanted_NK).flatten(0, 1)[picked_P] / safe_P1
        new_P = torch.cat([(book_CI.square().sum(1) - 2 * piece @ book_CI.mT).argmin(1) for piece in wanted_PI.split(1 << 15)])
        now_PI = self._vectors(now_NK).flatten(0, 1)[picked_P]
        inside_PI = self._vectors(torch.ones(1, self.in_features)).expand(len(row_P), -1, -1)
        inside_PI = inside_PI[torch.arange(len(row_P)), picked_P % self.codes.shape[1]]
        return new_P, ((book_CI[new_P] * scale_P1 - now_PI) * inside_PI).square().sum(-1)

    def packed(self) -> PackedLinear:
        return layer(packed_of(self.kind, self.in_features, self.group, scale=self.scale_N.detach().half(),
                               book=self.book_CI.detach().half(), codes=self.codes), self.bias)

    def _vectors(self, x_NK: Tensor) -> Tensor:
        return F.pad(x_NK, (0, -self.in_features % self.group)).view(len(x_NK), -1, self.group)


def of_layer(old: PackedLinear) -> Grid | Vectors:
    """A packed layer as it is trained. Raises UnsupportedError for kinds that are not."""
    if isinstance(old, NarrowLinear) and old.kind == "vector8":
        return Vectors(old)
    if old.kind in LEVELS or old.kind in RANGES:
        return Grid(old)
    raise UnsupportedError(f"{old.kind} weights cannot be tuned code by code: only {', '.join(RANGES)} and vector8 can")
