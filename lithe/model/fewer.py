"""Halves of a block that let fewer tokens through, or keep fewer channels for their gradient, while they are trained.

Axes: B batch, T tokens, R kept tokens, J blocks of tokens, C width, F inner channels, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.model.adapted import Choice, Host
from lithe.ops import blocks


class Predictor(nn.Module):
    """Which blocks of tokens have to do with each other, told from what attention reads: per head two low-rank networks, whose
    products stand for queries and keys of whole blocks (LeMo, section 5).
    """

    def __init__(self, heads: int, width: int, size: int, hidden: int):
        super().__init__()
        self.heads, self.size, each = heads, size, width // heads
        make = lambda: nn.ModuleList(nn.Linear(k, n, bias=False) for k, n in
                                     ((size * each, hidden), (hidden, size * each), (size * each, each)))
        self.queries: Any = make()
        self.keys: Any = make()

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Their pooled scores, [B, J, J]."""
        B, T, C = x_BTC.shape
        J = T // self.size
        x = x_BTC[:, : J * self.size].reshape(B, J, self.size, self.heads, C // self.heads)
        x_BHJK = x.permute(0, 3, 1, 2, 4).flatten(3).to(self.queries[0].weight.dtype)
        q, k = (self._path(layers, x_BHJK)[-1] for layers in (self.queries, self.keys))
        return (q @ k.transpose(-1, -2)).sum(1)

    @staticmethod
    def _path(layers: Any, x: Tensor) -> list[Tensor]:
        """What its three layers give."""
        first = F.relu(layers[0](x))
        second = F.relu(layers[1](first))
        return [first, second, layers[2](second)]

    @torch.no_grad()
    def shrink(self, x_BTC: Tensor, dead: float) -> None:
        """Drop the hidden units that are zero for at least this share of the blocks of a text."""
        B, T, C = x_BTC.shape
        J = T // self.size
        x = x_BTC[:, : J * self.size].reshape(B, J, self.size, self.heads, C // self.heads).permute(0, 3, 1, 2, 4).flatten(3)
        for layers in (self.queries, self.keys):
            for number, given in enumerate(self._path(layers, x.to(layers[0].weight.dtype))[:2]):
                alive = (given == 0).flatten(0, -2).float().mean(0) < dead
                if alive.any():
                    layers[number].weight = nn.Parameter(layers[number].weight[alive])
                    layers[number + 1].weight = nn.Parameter(layers[number + 1].weight[:, alive])


class FewerTokens(Host):
    """An Attention that only the blocks of tokens that matter run through, while training; the others get nothing from it.

    Kept tokens see each other, at their own positions. share: of the blocks, how many run. scores: of the blocks [B, J], told
    from what attention reads, the pass, and the attention itself.
    """

    def __init__(self, base: nn.Module, size: int, share: float, scores: Callable[[Tensor, Any, Any], Tensor]):
        super().__init__(base, Choice())
        self.size, self.share, self.scores = size, share, scores

    def forward(self, x_BTC: Tensor, run: Any) -> Tensor:
        B, T, C = x_BTC.shape
        count = max(1, round(self.share * (T // self.size)))
        if not self.training or count >= T // self.size:
            return self.base(x_BTC, run)
        with torch.no_grad():
            rows_BR = blocks.rows_of(self.scores(x_BTC, run, self.base).topk(count).indices, self.size, T)
            flat = (rows_BR + torch.arange(B, device=x_BTC.device).unsqueeze(1) * T).flatten()
        kept = x_BTC.flatten(0, 1).index_select(0, flat).view(B, -1, C)
        out = self.base(kept, run.only(rows_BR))
        return out.new_zeros(B * T, out.shape[-1]).index_copy(0, flat, out.flatten(0, 1)).view(B, T, -1)


class FewerChannels(Host):
    """An FFN that is run whole and, while training, keeps for its gradient only the inner channels with the largest norms."""

    def __init__(self, base: nn.Module, share: float):
        super().__init__(base, Choice())
        self.share = share

    def forward(self, x_BTC: Tensor) -> Tensor:
        ffn: Any = self.base
        if not (self.training and torch.is_grad_enabled() and self.share < 1):
            return ffn(x_BTC)
        up = ffn.up_proj(x_BTC)
        gate = None if ffn.gate_proj is None else ffn.gate_proj(x_BTC)
        with torch.no_grad():
            norm = lambda y: torch.linalg.vector_norm(y.flatten(0, -2), dim=0)
            score_F = norm(ffn.activation(up)) if gate is None else norm(ffn.activation(gate)) + norm(up)
            places = score_F.topk(max(1, round(self.share * len(score_F)))).indices
        whole, own = up.shape, {weight.data_ptr() for weight in ffn.parameters()}

        def pack(kept: Tensor) -> Any:
            inner = kept.numel() == whole.numel() and kept.shape[-1] == whole[-1] and kept.data_ptr() not in own
            return (kept.index_select(-1, places), kept.shape) if inner else kept

        def unpack(held: Any) -> Tensor:
            if isinstance(held, Tensor):
                return held
            part, shape = held
            return part.new_zeros(shape).index_copy_(-1, places, part)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            inner = ffn.activation(up) if gate is None else ffn.activation(gate) * up
            return ffn.down_proj(inner if ffn.sub_norm is None else ffn.sub_norm(inner))
