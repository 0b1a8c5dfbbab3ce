"""Linear layers other than PyTorch's own. Axes: N outputs, K inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lithe.kernels import sparse
from lithe.kernels.linear import linear, rows
from lithe.kernels.pack import LEVELS, PANEL, Packed, lay_out, pack, size, unpack
from lithe.kernels.room import room, tidy

HELD = ("places", "values", "starts")  # of sparse weights
PIECE = 1 << 18  # weights packed at a time: some twenty times as many bytes are held for a moment


def pack_pieces(weight_NK: Tensor, kind: str, group: int = 0) -> Packed:
    """What `pack` gives, made panel by panel, so that little more than the result is held beside the weights."""
    n, k = weight_NK.shape
    if kind not in LEVELS:
        return lay_out(weight_NK, kind, room(size(kind, n, k, group), weight_NK.device))
    taken = max(PIECE // k // PANEL, 1) * PANEL
    first = pack(weight_NK[:taken], kind, group)
    data, at = room(size(kind, n, k, first.group), weight_NK.device), 0
    for start in range(0, n, taken):
        piece = (first if start == 0 else pack(weight_NK[start : start + taken], kind, group)).data
        data[at : at + len(piece)] = piece
        at += len(piece)
    tidy()
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


class _FewProduct(torch.autograd.Function):
    """The same with weights of which few are left."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, held: sparse.Ready, bias_N: Tensor | None) -> Tensor:
        ctx.held, ctx.dtype = held, x_MK.dtype
        if x_MK.dtype == torch.float64:
            y_MN = x_MK @ sparse.plain(held).double().T
            return y_MN if bias_N is None else y_MN + bias_N
        return sparse.linear(held, x_MK, bias_N)

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return (grad_MN @ sparse.plain(ctx.held).to(grad_MN.dtype)).to(ctx.dtype), None, None


class SparseLinear(nn.Module):
    """A linear layer that holds only those of its weights that are not zero. They are fixed: only activations get gradients.

    Activations are not rounded, so it gives the bits that the dense layer gives in float32.
    """

    places: Tensor
    values: Tensor
    starts: Tensor
    bias: Tensor | None

    def __init__(self, stored: sparse.Sparse, bias_N: Tensor | None = None):
        super().__init__()
        self.kind, self.count = stored.kind, stored.count
        self.in_features, self.out_features = stored.k, stored.n
        self._held = sparse.ready(stored)
        for name in HELD:  # a folder has them in another form
            self.register_buffer(name, getattr(self._held, name), persistent=False)
        self.register_buffer("bias", None if bias_N is None else bias_N.detach().float())

    @classmethod
    def of(cls, module: nn.Linear, dtype: torch.dtype) -> SparseLinear | None:
        """The same layer, its weights in this precision; None where that would take as many bytes as all of them or more."""
        kind = next((kind for kind, own in sparse.KINDS.items() if own == dtype), "")
        n, k = module.out_features, module.in_features
        count = int(module.weight.detach().to(dtype).count_nonzero()) if kind else 0
        if not kind or sparse.size(kind, n, k, count) >= n * k * dtype.itemsize:
            return None
        return cls(sparse.pack(module.weight, kind), module.bias)

    @property
    def held(self) -> sparse.Ready:
        """The weights as the kernel takes them; anew where a buffer was replaced, as copying does."""
        if self._held.values is not self.values:
            self._held = sparse.Ready(self.places, self.values, self.starts, self.out_features, self.in_features,
                                      self._held.strips)
        return self._held

    @property
    def stored(self) -> sparse.Sparse:
        """As folders hold it."""
        return sparse.stored(self.held)

    @property
    def weight(self) -> Tensor:
        """The plain matrix [N, K], new: changing it changes nothing here."""
        return sparse.plain(self.held)

    def forward(self, x: Tensor) -> Tensor:
        y = _FewProduct.apply(x.reshape(-1, x.shape[-1]), self.held, self.bias)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}, {self.count} weights, bias={self.bias is not None}"

    def _apply(self, fn, recurse: bool = True):
        """Casting a model's precision leaves the weights and the bias as they are; the weights stay on the CPU."""
        kept = {name: self._buffers.pop(name) for name in HELD}
        super()._apply(lambda t: fn(t).float(), recurse)
        self._buffers.update(kept)
        return self


class Factored(nn.Module):
    """A linear layer as a product of two thinner ones: b(a(x)). Axes: R rank."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.a, self.b = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias)

    def fill(self, a_RK: Tensor, b_NR: Tensor, bias_N: Tensor | None) -> None:
        """Take these matrices."""
        self.a.weight, self.b.weight = (nn.Parameter(t.detach().contiguous(), requires_grad=False) for t in (a_RK, b_NR))
        self.b.register_parameter("bias", None if bias_N is None else nn.Parameter(bias_N.detach(), requires_grad=False))

    @property
    def rank(self) -> int:
        return self.a.out_features

    @property
    def weight(self) -> Tensor:
        """The product [N, K] as a new matrix: changing it changes nothing here."""
        return self.b.weight @ self.a.weight

    @property
    def bias(self) -> Tensor | None:
        return self.b.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Ranged(nn.Module):
    """A linear layer that reads its inputs rounded to a fixed range: step * q + low, q whole, from 0 to 2^bits - 1."""

    def __init__(self, base: nn.Module, bits: int, low: float = 0.0, step: float = 1.0):
        super().__init__()
        self.base, self.bits = base, bits
        self.low, self.step = (nn.Parameter(torch.tensor([value]), requires_grad=False) for value in (low, step))

    @property
    def in_features(self) -> int:
        return self.base.in_features  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        return self.base.out_features  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(rounded_inputs(x, self.low.to(x.dtype), self.step.to(x.dtype), self.bits))


def rounded_inputs(x: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """x at the nearest of 2^bits even steps from `low` on. Gradients pass the rounding as if it were not there."""
    level = ((x - low) / step).clamp(0, 2**bits - 1)
    return (level + (level.round() - level).detach()) * step + low


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
