"""Who sees whom in one pass. Axes: B batch, T rows of the pass, S key slots (cached ones first)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Causal:
    """Row i sees what is cached and rows 0..i."""


@dataclass(frozen=True)
class Full:
    """Every row sees what is cached and every row of the pass."""


@dataclass(frozen=True)
class Blocks:
    """Block-causal: a row sees every row whose block of `size` positions is not later than its own."""

    size: int


@dataclass(frozen=True)
class Tree:
    """A row sees what is cached, its ancestors and itself. parents_B[b][i] < i, or -1 for a root."""

    parents_B: tuple[tuple[int, ...], ...] | list[list[int]]


CAUSAL, FULL = Causal(), Full()
Mask = Causal | Full | Blocks | Tree | Tensor


def ancestors(parents: list[int], rows: int) -> Tensor:
    """Boolean [rows, rows]: True at (i, j) where j is i or an ancestor of i. Rows past the tree see themselves only."""
    seen = torch.eye(rows, dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            seen[i] |= seen[parent]
    return seen


def among_rows(mask: Mask, pos_BT: Tensor, docs_BT: Tensor | None) -> Tensor:
    """Visibility among the rows of the pass itself, boolean [B or 1, T, T]."""
    T = pos_BT.shape[1]
    if isinstance(mask, Tensor):
        seen = mask if mask.dim() == 3 else mask.unsqueeze(0)
    elif isinstance(mask, Causal):
        seen = torch.ones(1, T, T, dtype=torch.bool, device=pos_BT.device).tril()
    elif isinstance(mask, Full):
        seen = torch.ones(1, T, T, dtype=torch.bool, device=pos_BT.device)
    elif isinstance(mask, Blocks):
        block_BT = pos_BT // mask.size
        seen = block_BT.unsqueeze(1) <= block_BT.unsqueeze(2)
    else:
        seen = torch.stack([ancestors(list(parents), T) for parents in mask.parents_B]).to(pos_BT.device)
    if docs_BT is not None:
        seen = seen & (docs_BT.unsqueeze(1) == docs_BT.unsqueeze(2))
    return seen


def over_cache(among_BTT: Tensor, lengths: list[int]) -> Tensor:
    """Visibility over cached slots and the rows written behind each sequence's length, boolean [B, T, max length + T].

    Slots of shorter sequences that lie past their own rows hold garbage and are visible to nobody.
    """
    B, T = len(lengths), among_BTT.shape[-1]
    longest = max(lengths)
    if min(lengths) == longest:
        past = torch.ones(1, 1, 1, dtype=torch.bool, device=among_BTT.device).expand(among_BTT.shape[0], T, longest)
        return torch.cat((past, among_BTT), dim=2)
    seen = torch.zeros(B, T, longest + T, dtype=torch.bool, device=among_BTT.device)
    for b, length in enumerate(lengths):
        seen[b, :, :length] = True
        seen[b, :, length : length + T] = among_BTT[b if among_BTT.shape[0] > 1 else 0]
    return seen


def key_positions(pos_BT: Tensor, lengths: list[int]) -> Tensor:
    """Position of every key slot, [B, max length + T]: a committed slot's position is its index."""
    B, T = pos_BT.shape
    slots = max(lengths) + T
    keys = torch.arange(slots, device=pos_BT.device).expand(B, slots).clone()
    for b, length in enumerate(lengths):
        keys[b, length : length + T] = pos_BT[b]
    return keys
