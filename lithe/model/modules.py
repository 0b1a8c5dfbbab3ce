"""Small modules a block is made of. Axes: B batch, T time, C width, E experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.errors import FormatError

Pairs = tuple[tuple[str, int], ...]  # sites and a number for each
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + offset), the mean square taken in at least float32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        if self.offset:  # Gemma multiplies before it rounds
            wide = F.rms_norm(_wide(x), (x.shape[-1],), eps=self.eps)
            return (wide * (_wide(self.weight) + self.offset)).to(x.dtype)
        return F.rms_norm(_wide(x), (x.shape[-1],), eps=self.eps).to(self.weight.dtype) * self.weight


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class FFN(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where it is not gated; BitNet norms the input of down."""

    def __init__(self, width: int, inner: int, *, activation: str, gated: bool, bias: bool = False,
                 sub_norm: bool = False, eps: float = 1e-5):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias) if gated else None
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.sub_norm = RMSNorm(inner, eps) if sub_norm else None
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up_proj(x)
        inner = self.activation(inner) if self.gate_proj is None else self.activation(self.gate_proj(x)) * inner
        return self.down_proj(inner if self.sub_norm is None else self.sub_norm(inner))


class Experts(nn.Module):
    """A sparse mixture: each token runs its top experts, weighted by the router (Jiang et al. 2024, section 2.1)."""

    def __init__(self, width: int, inner: int, *, experts: int, top: int, norm_topk: bool, activation: str):
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(FFN(width, inner, activation=activation, gated=True) for _ in range(experts))
        self.top, self.norm_topk = top, norm_topk
        self.among: Callable[[Tensor], Tensor] | None = None  # p_BTE -> which experts each sequence may take, boolean [B, 1, E]

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_NC = x_BTC.reshape(-1, x_BTC.shape[-1])
        p_NE = torch.softmax(_wide(self.router(x_NC)), dim=-1)
        if self.among is not None:
            p_BTE = p_NE.view(*x_BTC.shape[:-1], -1)
            p_NE = p_BTE.masked_fill(~self.among(p_BTE), 0.0).view_as(p_NE)
        weight_NK, chosen_NK = p_NE.topk(self.top, dim=-1)
        if self.norm_topk:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        out_NC = torch.zeros_like(x_NC)
        for e in chosen_NK.unique().tolist():
            rows, place = (chosen_NK == e).nonzero(as_tuple=True)
            out_NC.index_add_(0, rows, self.experts[e](x_NC[rows]) * weight_NK[rows, place, None].to(x_NC.dtype))
        return out_NC.view_as(x_BTC)


def draw(model: Any, seed: int) -> None:
    """Fresh weights of a decoder: normal with deviation 0.02, smaller where a matrix writes to the residual stream."""
    dice = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() >= 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=0.02 / (2 * model.config.layers) ** 0.5 if writes else 0.02, generator=dice)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)


def _found(model: nn.Module, name: str) -> tuple[Any, str, Any]:
    """A module's parent, its name there and itself; None for what there is not."""
    place, _, leaf = name.rpartition(".")
    try:
        parent: Any = model.get_submodule(place)
        return parent, leaf, getattr(parent, leaf)
    except AttributeError:
        return None, leaf, None


def _choose(model: nn.Module, chosen: Pairs) -> None:
    from lithe.model.chosen import Chosen

    for name, rank in chosen:
        parent, leaf, old = _found(model, name)
        if type(old) is not FFN:
            raise FormatError(f"config: {name!r:.80} is no FFN, so it has no channels to choose")
        setattr(parent, leaf, Chosen(old, rank))


def remake(model: nn.Module, ranks: Pairs, inputs: Pairs, chosen: Pairs = (), blocks: Pairs = (), pool: Pairs = ()) -> None:
    """Make linear layers products of two, or readers of rounded inputs, and FFNs choose their channels. Raises FormatError for
    names of no such layer."""
    if chosen:
        _choose(model, chosen)
    if pool:
        from lithe.model.pooled import pool_layers

        pool_layers(model, pool)
    if not (ranks or inputs or blocks):
        return
    from lithe.model.blocks import in_blocks
    from lithe.model.linear import Factored, Ranged  # which bring the kernels along

    none = "is no linear layer, so it has no rank and no rounded inputs"
    for name, rank in ranks:
        parent, leaf, old = _found(model, name)
        if not isinstance(old, nn.Linear):
            raise FormatError(f"config: {name!r:.80} {none}")
        if rank > min(old.in_features, old.out_features):
            raise FormatError(f"config: {name} cannot have rank {rank}")
        setattr(parent, leaf, Factored(old.in_features, old.out_features, rank, bias=old.bias is not None))
    in_blocks(model, blocks)  # of pairs as well
    for name, number in inputs:
        parent, leaf, old = _found(model, name)
        if not isinstance(old, nn.Linear | Factored):
            raise FormatError(f"config: {name!r:.80} {none}")
        setattr(parent, leaf, Ranged(old, number))
