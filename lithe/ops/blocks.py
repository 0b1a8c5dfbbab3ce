"""How much the tokens of a block have to do with those of others.

Axes: B batch, H heads, G key-value heads, T tokens, D head width, J blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled(q_BHTD: Tensor, k_BGTD: Tensor, size: int, seen_BTT: Tensor | None = None) -> Tensor:
    """Attention scores before the softmax by pairs of blocks, [B, J, J]: positive ones, summed over heads, the most of each
    pair, in both directions (LeMo, section 4). Only whole blocks are looked at. seen_BTT: who sees whom beside what is causal.
    """
    (B, H, T, D), G = q_BHTD.shape, k_BGTD.shape[1]
    whole = T // size * size
    scores = q_BHTD.reshape(B, G, H // G, T, D) @ k_BGTD.unsqueeze(2).transpose(-1, -2) * D**-0.5
    seen = torch.ones(T, T, dtype=torch.bool, device=scores.device).tril()
    seen = seen if seen_BTT is None else seen & seen_BTT
    total_BTT = scores.clamp(min=0).sum((1, 2)) * seen
    lower_BJJ = F.max_pool2d(total_BTT[:, None, :whole, :whole], size)[:, 0]
    return lower_BJJ + lower_BJJ.transpose(1, 2)


def informative(pooled_BJJ: Tensor, causal: bool = False) -> Tensor:
    """What each block has to do with all others, [B, J]; causal: with those before it and itself."""
    return (pooled_BJJ.tril() if causal else pooled_BJJ).sum(-1)


def rows_of(blocks_BR: Tensor, size: int, tokens: int) -> Tensor:
    """The tokens of chosen blocks, in order, and what is left behind the last whole block: [B, rows]."""
    rows = (blocks_BR.sort(1).values.unsqueeze(-1) * size + torch.arange(size, device=blocks_BR.device)).flatten(1)
    tail = torch.arange(tokens // size * size, tokens, device=blocks_BR.device)
    return torch.cat((rows, tail.expand(len(rows), -1)), 1)
