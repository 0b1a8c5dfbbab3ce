"""Linear layers as a product of two thinner ones, either of which may be block-diagonal.

| first | second | name (Wei et al. 2024, section 3) |
|---|---|---|
| whole | whole | LowRank |
| in blocks | whole | BlockDense |
| in blocks | in blocks, every G-th entry together | BlockShuffle |

Axes: N outputs, K inputs, R inner width, G blocks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lithe.errors import FormatError
from lithe.model.linear import Factored, PackedLinear
from lithe.model.site import Site

if TYPE_CHECKING:
    from lithe.model.decoder import Decoder

TURNS, GAIN = 5, 0.95  # passes that are timed each way; merged layers must take at most so much of the pairs' time


class Blocks(nn.Module):
    """A linear layer of G blocks [G, N/G, K/G]. strided: block g reads and writes every G-th entry from g on, not a stretch."""

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, blocks: int, *, strided: bool, bias: bool = False):
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise FormatError(f"{outputs} x {inputs} weights do not divide into {blocks} blocks")
        self.in_features, self.out_features, self.blocks, self.strided = inputs, outputs, blocks, strided
        self.weight = nn.Parameter(torch.randn(blocks, outputs // blocks, inputs // blocks) * (inputs // blocks) ** -0.5)
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        x_GK = x.unflatten(-1, (-1, self.blocks)).mT if self.strided else x.unflatten(-1, (self.blocks, -1))
        y_GN = torch.einsum("...gk,gnk->...gn", x_GK, self.weight.to(x.dtype))
        y = (y_GN.mT if self.strided else y_GN).flatten(-2)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, blocks={self.blocks}, strided={self.strided}"


def whole(weight: Tensor, strided: bool) -> Tensor:
    """The matrix [N, K] of blocks [G, N/G, K/G]; a matrix as it is."""
    if weight.dim() == 2:
        return weight
    g, n, k = weight.shape
    if not strided:
        return torch.block_diag(*weight)
    wide = weight.new_zeros(n, g, k, g)
    wide[:, torch.arange(g), :, torch.arange(g)] = weight
    return wide.view(n * g, k * g)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix [N, K] of a pair: each [R, K] and [N, R], or blocks of that."""
    return whole(b, True) @ whole(a, False)


class Structured(Factored):
    """A product of which one or both are block-diagonal: b(a(x)). blocks: of a and of b, 1 where it is whole."""

    def __init__(self, inputs: int, outputs: int, rank: int, blocks: tuple[int, int], *, bias: bool):
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        made: Any = lambda k, n, g, strided, b: nn.Linear(k, n, bias=b) if g == 1 else Blocks(k, n, g, strided=strided, bias=b)
        self.a, self.b = made(inputs, rank, blocks[0], False, False), made(rank, outputs, blocks[1], True, bias)

    @property
    def weight(self) -> Tensor:
        return product(self.a.weight, self.b.weight)


def of_pair(a: Tensor, b: Tensor, bias_N: Tensor | None) -> Factored:
    """The layer of a pair of matrices or blocks."""
    counts = (1 if a.dim() == 2 else len(a), 1 if b.dim() == 2 else len(b))
    inputs, rank, outputs = a.shape[-1] * counts[0], a.shape[-2] * counts[0], b.shape[-2] * counts[1]
    made = Structured(inputs, outputs, rank, counts, bias=bias_N is not None) if max(counts) > 1 else Factored(
        inputs, outputs, rank, bias=bias_N is not None)
    made.fill(a, b, bias_N)
    return made


def in_blocks(model: nn.Module, blocks: tuple[tuple[str, int], ...]) -> None:
    """Make halves of pairs, by names such as "layers.0.mlp.up_proj.a", block-diagonal. Raises FormatError for other names."""
    counts: dict[str, dict[str, int]] = {}
    for name, count in blocks:
        pair, _, half = name.rpartition(".")
        counts.setdefault(pair, {})[half] = count
    for pair, found in counts.items():
        place, _, leaf = pair.rpartition(".")
        old = next((module for name, module in model.named_modules() if name == pair), None)
        if type(old) is not Factored or not found.keys() <= {"a", "b"}:
            raise FormatError(f"config: {pair!r:.80} is no product of two matrices, so it has no blocks")
        setattr(model.get_submodule(place), leaf, Structured(
            old.in_features, old.out_features, old.rank, (found.get("a", 1), found.get("b", 1)), bias=old.bias is not None))


@torch.no_grad()
def merge_where_faster(model: Decoder, kind: str) -> bool:
    """Put products in the place of all pairs if a pass of one row is faster so, on this machine; whether it was done.

    A pair reads fewer bytes but keeps its block from running compiled. kind: one that rounds nothing (fp32).
    """
    pairs = {name: module for name, module in model.named_modules() if isinstance(module, Factored)}
    if not pairs:
        return False
    apart = _row_seconds(model)
    for name, pair in pairs.items():
        plain: Any = nn.Linear(pair.in_features, pair.out_features, bias=pair.bias is not None, device="meta")
        plain.weight = nn.Parameter(_matrix(pair), requires_grad=False)
        plain.bias = None if pair.bias is None else nn.Parameter(pair.bias.float(), requires_grad=False)
        Site(name, model).swap(PackedLinear.of(plain, kind))
    if _row_seconds(model) <= GAIN * apart:
        model.config = model.config.replace(ranks=(), blocks=())
        return True
    for name, pair in pairs.items():
        Site(name, model).swap(pair)
    return False


def _matrix(pair: Any) -> Tensor:
    return product(pair.a.weight.float(), pair.b.weight.float())


def _row_seconds(model: Decoder) -> float:
    """The least time of a pass of one row."""
    ids_BT, best = torch.zeros(1, 1, dtype=torch.int64), float("inf")
    for _ in range(TURNS + 1):
        began = time.perf_counter()
        model(ids_BT)
        best = min(best, time.perf_counter() - began)
    return best
