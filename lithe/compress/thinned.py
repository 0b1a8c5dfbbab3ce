"""Linear layers trained while some weights are held back: masks, the gradients that pass them, and how often they change.

Axes: N outputs, K inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.compress.groups import find
from lithe.compress.masking import of_pattern
from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.model.site import Site


class Straight(torch.autograd.Function):
    """W where the mask is, beta W elsewhere. The gradient passes to all entries as if that were W; where the mask is not,
    decay W joins it."""

    @staticmethod
    def forward(ctx: Any, weight_NK: Tensor, mask_NK: Tensor, beta: float, decay: float) -> Tensor:
        ctx.save_for_backward(weight_NK, mask_NK)
        ctx.decay = decay
        return torch.where(mask_NK, weight_NK, beta * weight_NK)

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        weight_NK, mask_NK = ctx.saved_tensors
        return (grad_NK + ctx.decay * torch.where(mask_NK, 0.0, weight_NK) if ctx.decay else grad_NK), None, None, None


class Thinned(nn.Module):
    """A linear layer that reads its weights through a mask. straight: whether what is masked gets gradients; beta: how much of
    it is read all the same; decay: see `Straight`. changes: entries of the mask that changed since the first, each time."""

    mask: Tensor
    bias: nn.Parameter | None

    def __init__(self, old: nn.Linear, *, straight: bool = True):
        super().__init__()
        self.in_features, self.out_features, self.straight = old.in_features, old.out_features, straight
        self.weight = nn.Parameter(old.weight.detach().clone())
        self.register_parameter("bias", None if old.bias is None else nn.Parameter(old.bias.detach().clone()))
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))
        self.beta = self.decay = 0.0
        self.changes: int | None = None

    @torch.no_grad()
    def choose(self, mask_NK: Tensor) -> None:
        """Another mask from now on."""
        self.changes = 0 if self.changes is None else self.changes + int((mask_NK != self.mask).sum())
        self.mask = mask_NK

    @torch.no_grad()
    def shrink(self, by: float) -> None:
        """What is masked loses this part of itself."""
        self.weight.mul_(torch.where(self.mask, 1.0, 1.0 - by))

    def read(self) -> Tensor:
        """The weights as the layer multiplies with them."""
        if self.straight:
            return Straight.apply(self.weight, self.mask, self.beta, self.decay)
        return torch.where(self.mask, self.weight, self.beta * self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.read(), self.bias)


def thin(model: Decoder, sites: str, *, straight: bool = True) -> dict[str, Thinned]:
    """Put such layers in the place of a model's linear layers, their masks full; by name. sites: as groups.find takes them."""
    made = {}
    for name in (group.sites[0] for group in find(model, "entry", sites)):
        place: Any = Site(name, model)
        if not isinstance(place.module, nn.Linear):
            raise UsageError(f"{name} holds a {type(place.module).__name__}, whose weights cannot be trained under a mask")
        made[name] = Thinned(place.module, straight=straight)
        place.swap(made[name])
    return made


@torch.no_grad()
def settle(model: Decoder, layers: dict[str, Thinned]) -> None:
    """Plain layers again, what is masked at zero."""
    for name, layer in layers.items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(torch.where(layer.mask, layer.weight, 0.0), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        Site(name, model).swap(plain)


def neighbours(weight_NK: Tensor, pattern: str, axis: str = "input") -> Tensor:
    """The mask of the n largest of m neighbours, along a row's inputs or along outputs."""
    size_NK = weight_NK.detach().abs()
    return of_pattern(size_NK, pattern) if axis == "input" else of_pattern(size_NK.T, pattern).T.contiguous()


def changed(layers: dict[str, Thinned]) -> float:
    """Mask entries that changed, over weights: the sum of SAD (Zhou et al. 2021, section 3.2) from step to step."""
    return sum(layer.changes or 0 for layer in layers.values()) / max(1, sum(layer.mask.numel() for layer in layers.values()))


def share_of_work(left: float, dense_steps: int, steps: int) -> float:
    """Multiplications of a run in linear layers over a dense one's: two of a step's three products read the mask, the one for
    the weights' gradient is whole."""
    return (dense_steps + (steps - dense_steps) * (2 * left + 1) / 3) / max(1, steps)
