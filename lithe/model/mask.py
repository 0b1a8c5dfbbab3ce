"""Who sees whom in one pass. Axes: B batch, T rows of the pass, S key slots (cached ones first)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lithe.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from lithe.model.adapted import Groups
    from lithe.model.cache import Cache
    from lithe.model.config import Rope
    from lithe.model.decoder import Decoder


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


def ancestors(parents: Sequence[int], rows: int) -> Tensor:
    """Boolean [rows, rows]: True at (i, j) where j is i or an ancestor of i. Rows past the tree see themselves only."""
    return torch.frombuffer(ancestry(parents, rows), dtype=torch.bool).view(rows, rows)


def ancestry(parents: Sequence[int], rows: int) -> bytearray:
    """The same as bytes, row by row."""
    seen: list[bytearray] = []  # bytes, since a tensor for each of a few dozen rows would cost more than the pass's attention
    for i in range(rows):
        parent = parents[i] if i < len(parents) else -1
        row = bytearray(seen[parent]) if parent >= 0 else bytearray(rows)
        row[i] = 1
        seen.append(row)
    return bytearray().join(seen)


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
        seen = torch.stack([ancestors(parents, T) for parents in mask.parents_B]).to(pos_BT.device)
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


def whole(rows: list[list[int]], device: torch.device) -> Tensor:
    """Whole numbers [B, T], by way of an array: a tensor made from lists takes several times as long."""
    made = torch.from_numpy(np.array(rows, dtype=np.int64))
    return made if device.type == "cpu" else made.to(device)


def positions(chosen: Tensor | list[list[int]] | None, lengths: list[int], rows: int,
              device: torch.device) -> tuple[Tensor, int]:
    """The positions [B, T] of a pass, and the furthest one. chosen: None has the rows follow what is cached.

    Lists are looked through before they become a tensor, which is quicker. Raises UsageError for a position below 0.
    """
    if chosen is None:
        steps = torch.arange(rows, device=device)
        if max(lengths) == 0:
            return steps.expand(len(lengths), rows), rows - 1
        return torch.stack([steps + n for n in lengths]), max(lengths) + rows - 1
    if isinstance(chosen, Tensor):
        pos_BT, (first, last) = chosen, (int(end) for end in chosen.aminmax())
    else:
        pos_BT, first, last = whole(chosen, device), min(map(min, chosen)), max(map(max, chosen))
    if first < 0:
        raise UsageError(f"positions count from 0, but one is {first}")
    return pos_BT, last


class Pass:
    """What every block of one pass shares: positions, rotations and who sees whom, worked out when they are first asked for."""

    def __init__(self, model: Decoder, pos_BT: Tensor, last: int, mask: Mask, docs_BT: Tensor | None, lengths: list[int],
                 cache: Cache | None):
        """last: no position lies past it. lengths: what is cached of each sequence."""
        self.model, self.pos_BT, self.last, self.mask, self.docs_BT = model, pos_BT, last, mask, docs_BT
        self.lengths, self.cache = lengths, cache
        self.groups: Groups | None = None  # which adapters each row wants
        self.counts = [pos_BT.shape[1]] * len(pos_BT)  # rows of each sequence
        T, plain = pos_BT.shape[1], isinstance(mask, Causal) and docs_BT is None
        self.plain = plain  # a row sees what is cached and the rows up to itself
        self.causal = plain and max(lengths) == 0 and T > 1
        self.everything = plain and T == 1 and min(lengths) == max(lengths)
        self._visible: dict[int | None, Tensor | None] = {None: None} if self.causal or self.everything else {}
        self._rotation: dict[Rope, tuple[Tensor, Tensor]] = {}

    def over(self, cache: Cache) -> Pass:
        """The same pass over another cache of the same lengths."""
        other = copy(self)
        other.cache = cache
        return other

    def only(self, rows_BR: Tensor) -> Pass:
        """The same pass of some rows alone, in rising order, each at its own position. Raises UnsupportedError with a cache."""
        if self.cache is not None or not isinstance(self.mask, (Causal, Full, Blocks)):
            raise UnsupportedError("rows can be left out of a pass without a cache whose mask goes by positions")
        docs_BR = None if self.docs_BT is None else self.docs_BT.gather(1, rows_BR)
        other = Pass(self.model, self.pos_BT.gather(1, rows_BR), self.last, self.mask, docs_BR, self.lengths, None)
        other.groups = self.groups
        return other

    def among(self) -> Tensor:
        """Who sees whom among the rows of the pass, windows aside: boolean [B or 1, T, T]."""
        return among_rows(self.mask, self.pos_BT, self.docs_BT)

    def squares(self) -> list[Tensor]:
        """The same for each sequence, [T, T]; one object where all share it."""
        among = self.among()
        return list(among) if len(among) > 1 else [among[0]] * len(self.counts)

    def visible(self, window: int | None) -> Tensor | None:
        """Who sees which slot, boolean [B or 1, T, S]; None: everything, or what is plainly causal."""
        if window not in self._visible:
            seen = over_cache(self.among(), self.lengths)
            if window is not None:
                keys = key_positions(self.pos_BT, self.lengths)
                seen = seen & ((self.pos_BT.unsqueeze(2) - keys.unsqueeze(1)).abs() < window)
            self._visible[window] = seen
        return self._visible[window]

    def rotation(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos and sin of every row, [B, T, rotated]."""
        if rope not in self._rotation:
            cos, sin = self.model.turns(rope, self.last, self.pos_BT.device)
            self._rotation[rope] = cos[self.pos_BT], sin[self.pos_BT]
        return self._rotation[rope]
