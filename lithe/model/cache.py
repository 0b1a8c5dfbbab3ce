"""Where keys and values are kept between passes. Axes: B batch, G key-value heads, S slots, T rows, D head width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from lithe.errors import TooLargeError, UsageError
from lithe.kernels import library
from lithe.kernels.block import Stores
from lithe.model.config import Config
from lithe.ops.attention import attention


class Cache(Protocol):
    """What the decoder and the loops ask of a cache. `can` names what this kind is able to do."""

    can: frozenset[str]
    lengths: list[int]  # committed tokens of each sequence; what lies behind is garbage

    def reserve(self, rows: int) -> None: ...
    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, **see) -> Tensor: ...
    def commit(self, rows_B: Sequence[int | Sequence[int]]) -> None: ...
    def truncate(self, lengths: Sequence[int]) -> None: ...
    def keep(self, batch: Sequence[int]) -> None: ...
    def fork(self, batch: Sequence[int]) -> Cache: ...


class PlainCache:
    """Preallocated: rows are written behind `lengths`, `commit` gathers the accepted ones, so rollback is free."""

    can = frozenset({"truncate", "commit", "gather", "tree", "fork", "view", "slots"})
    # "slots": k[layer] and v[layer] are plain [B, G, capacity, D], which compiled layers write and read themselves

    def __init__(self, config: Config, *, batch: int = 1, capacity: int | None = None,
                 dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self.config, self.capacity = config, capacity or config.context
        self.lengths = [0] * batch
        shapes = [config.layer(i) for i in range(config.layers)]
        new = lambda layer: torch.zeros(batch, layer.kv_heads, self.capacity, layer.head_dim, dtype=dtype, device=device)
        self.k = [new(layer) if layer.heads else None for layer in shapes]
        self.v = [new(layer) if layer.heads else None for layer in shapes]
        self.layers: Iterable[int] = range(config.layers)
        self._moves: dict[int, tuple[Tensor, Stores]] = {}  # by sequence, with a tensor that tells when they are others
        self._home: PlainCache | None = None
        self.laid = object()  # another one whenever the storage lies elsewhere, for what keeps addresses; a view asks its home
        self.way: Any = None  # what a decoder keeps of passes over this storage

    @classmethod
    def like(cls, model, *, batch: int = 1, capacity: int | None = None) -> PlainCache:
        """A cache that fits a decoder's shape, precision and device."""
        return cls(model.config, batch=batch, capacity=capacity, dtype=model.dtype, device=model.device)

    def reserve(self, rows: int) -> None:
        """Raise TooLargeError unless `rows` more rows fit behind every sequence."""
        if max(self.lengths) + rows > self.capacity:
            raise TooLargeError(f"{max(self.lengths)} cached tokens and {rows} more do not fit into {self.capacity} slots")

    def grow(self, capacity: int) -> None:
        """Make room for longer sequences; what is cached stays."""
        self.home.laid = object()
        for store in (self.k, self.v):
            for j, old in enumerate(store):
                if old is not None:
                    new = store[j] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                    new[:, :, : self.capacity] = old
        self.capacity = capacity

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, **see) -> Tensor:
        """Write this pass's keys and values behind each length, then attend over all slots in use."""
        k, v, T = self.k[layer], self.v[layer], k_BGTD.shape[2]
        assert k is not None and v is not None
        first = self.lengths[0]
        if all(n == first for n in self.lengths):
            k[:, :, first : first + T] = k_BGTD
            v[:, :, first : first + T] = v_BGTD
        else:
            for b, n in enumerate(self.lengths):
                k[b, :, n : n + T] = k_BGTD[b]
                v[b, :, n : n + T] = v_BGTD[b]
        end = max(self.lengths) + T
        return attention(q_BHTD, k[:, :, :end], v[:, :, :end], **see)

    def commit(self, rows_B: Sequence[int | Sequence[int]]) -> None:
        """Keep rows of the last pass: a count keeps the first ones, a rising list of row numbers keeps those."""
        if len(rows_B) != len(self.lengths):
            raise UsageError(f"commit got {len(rows_B)} entries for {len(self.lengths)} sequences")
        for b, rows in enumerate(rows_B):
            start = self.lengths[b]
            if isinstance(rows, int):
                self.lengths[b] = start + rows
                continue
            if list(rows) != list(range(len(rows))):  # rows already in place are not copied
                self._gather(b, start, rows)
            self.lengths[b] = start + len(rows)

    def _gather(self, b: int, start: int, rows: Sequence[int]) -> None:
        """Move the rows of sequence b that stay behind its length, in every layer."""
        if any(a >= b for a, b in pairwise((-1, *rows))):
            raise UsageError(f"commit takes rising row numbers, not {list(rows)}")
        kernels = library.load() if self.device.type == "cpu" else None
        if kernels is not None:
            first = next(k for k in self.k if k is not None)
            if b not in self._moves or self._moves[b][0] is not first:
                self._moves[b] = first, Stores(self._stores(b))
            self._moves[b][1].move([start + row for row in rows], range(start, start + len(rows)), kernels=kernels)
            return
        source = torch.tensor([start + row for row in rows], device=self.device)
        for store in self._stores(b):
            store[:, start : start + len(rows)] = store.index_select(1, source)

    def _stores(self, b: int) -> list[Tensor]:
        """All that is kept of a sequence, [G, S, D] each."""
        return [store[b] for j in self.layers for store in (self.k[j], self.v[j]) if store is not None]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what lies past the given lengths."""
        for b, n in enumerate(lengths):
            if not 0 <= n <= self.lengths[b]:
                raise UsageError(f"cannot truncate sequence {b} of {self.lengths[b]} tokens to {n}")
            self.lengths[b] = n

    def keep(self, batch: Sequence[int]) -> None:
        """Reorder, drop or repeat sequences: sequence b becomes what sequence batch[b] was. -1 makes an empty one."""
        if list(batch) == list(range(len(self.lengths))):
            return
        self.home.laid = object()
        index = torch.tensor([max(b, 0) for b in batch], dtype=torch.long, device=self.device)
        empty = not self.lengths
        for store in (self.k, self.v):
            for j, old in enumerate(store):
                if old is not None:
                    store[j] = old.new_zeros(len(batch), *old.shape[1:]) if empty else old.index_select(0, index)
        self.lengths = [self.lengths[b] if b >= 0 else 0 for b in batch]

    def fork(self, batch: Sequence[int]) -> PlainCache:
        """An independent cache holding copies of the given sequences."""
        twin = self.view(self.layers)
        twin.k, twin.v, twin.lengths, twin._home = list(self.k), list(self.v), list(self.lengths), None
        twin.laid, twin.way = object(), None
        if list(batch) == list(range(len(self.lengths))):
            twin.k = [None if k is None else k.clone() for k in self.k]
            twin.v = [None if v is None else v.clone() for v in self.v]
        else:
            twin.keep(batch)
        return twin

    def view(self, layers: Iterable[int]) -> PlainCache:
        """The same storage seen by a pass over some of the layers, with lengths of its own."""
        twin = object.__new__(PlainCache)
        twin.config, twin.capacity, twin.layers = self.config, self.capacity, layers
        twin.k, twin.v, twin.lengths, twin._moves, twin._home = self.k, self.v, list(self.lengths), {}, self.home
        return twin

    @property
    def home(self) -> PlainCache:
        """What holds the storage: this, or what it is a view of."""
        return self if self._home is None else self._home

    @property
    def device(self) -> torch.device:
        return next(k.device for k in self.k if k is not None)
