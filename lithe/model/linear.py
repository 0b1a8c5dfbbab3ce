"""Linear layers other than PyTorch's own. Axes: N outputs, K inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lithe.kernels.linear import linear, rows
from lithe.kernels.pack import PANEL, Packed, pack, size, unpack

PIECE = 1 << 18  # weights packed at a time: some twenty times as many bytes are held for a moment


def pack_pieces(weight_NK: Tensor, kind: str, group: int = 0) -> Packed:
    """What `pack` gives, made panel by panel, so that little more than the result is held beside the weights."""
    n, k = weight_NK.shape
    taken = max(PIECE // k // PANEL, 1) * PANEL
    first = pack(weight_NK[:taken], kind, group)
    if n <= taken:
        return first
    data, at = first.data.new_empty(size(kind, n, k, first.group)), 0
    for start in range(0, n, taken):
        piece = (first if start == 0 else pack(weight_NK[start : start + taken], kind, group)).data
        data[at : at + len(piece)] = piece
        at += len(piece)
    return Packed(data, kind, n, k, first.group)


class _Product(torch.autograd.Function):
    """A product through which gradients reach the activations: those of the weights as they are after rounding."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, packed: Packed, bias_N: Tensor | None) -> Tensor:
        ctx.packed, ctx.dtype = packed, x_MK.dtype
        return linear(packed, x_MK, bias_N)

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return (grad_MN @ unpack(ctx.packed).to(grad_MN.dtype)).to(ctx.dtype), None, None


class PackedLinear(nn.Module):
    """A linear layer whose only copy of the weights is the kernels' layout. They are fixed: only activations get gradients."""

    data: Tensor
    bias: Tensor | None

    def __init__(self, packed: Packed, bias_N: Tensor | None = None):
        super().__init__()
        self.kind, self.group = packed.kind, packed.group
        self.in_features, self.out_features = packed.k, packed.n
        self.register_buffer("data", packed.data)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float())
        self._packed = packed

    @classmethod
    def of(cls, module: nn.Linear, kind: str, group: int = 0) -> PackedLinear:
        """The same layer with weights rounded to nearest as `kind` asks (see kernels/pack.py)."""
        return cls(pack_pieces(module.weight, kind, group), module.bias)

    @property
    def packed(self) -> Packed:
        """The weights as the kernels take them; anew where a buffer was replaced, as loading and moving do."""
        if self._packed.data is not self.data:
            self._packed = Packed(self.data, self.kind, self.out_features, self.in_features, self.group)
        return self._packed

    @property
    def weight(self) -> Tensor:
        """What the layer multiplies with, as a new plain matrix [N, K]: changing it changes nothing here."""
        return unpack(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x.reshape(-1, x.shape[-1]), self.packed, self.bias)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        group = f", group={self.group}" if self.group else ""
        return f"{self.in_features}, {self.out_features}, {self.kind}{group}, bias={self.bias is not None}"

    def get_extra_state(self) -> dict[str, Any]:
        return {"kind": self.kind, "group": self.group, "n": self.out_features, "k": self.in_features}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.kind, self.group = state["kind"], state["group"]
        self.out_features, self.in_features = state["n"], state["k"]

    def _apply(self, fn, recurse: bool = True):
        """Casting a model's precision leaves packed bytes and the bias as they are; moving it moves them."""
        super()._apply(lambda t: fn(t) if t.dtype == torch.uint8 else fn(t).float(), recurse)
        return self


class PackedEmbedding(nn.Module):
    """Input embeddings read out of packed weights: a tied output matrix then needs no second copy."""

    def __init__(self, head: PackedLinear, dtype: torch.dtype):
        super().__init__()
        self._head, self.dtype = (head,), dtype  # in a tuple: the head stays a module of the decoder's alone
        self.num_embeddings, self.embedding_dim = head.out_features, head.in_features

    @property
    def weight(self) -> Tensor:
        return self.head.weight

    @property
    def head(self) -> PackedLinear:
        return self._head[0]

    def forward(self, ids: Tensor) -> Tensor:
        return rows(self.head.packed, ids.flatten()).view(*ids.shape, -1).to(self.dtype)
