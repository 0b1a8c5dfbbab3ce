"""Keys and values in pages that sequences share. Axes: B batch, G key-value heads, S slots, T rows, D head width, P pages.

A sequence is a table of pages. A page that several tables or a prefix tree hold is never written to: who wants to gets a
copy. What a pass computes does not depend on where its pages lie, so paged and plain caches give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lithe.errors import TooLargeError, UsageError
from lithe.kernels import library
from lithe.kernels.block import Paging, Stores
from lithe.model.config import Config
from lithe.ops.attention import attention

# Which sequences of a pass are read together: group(pages of each, slots a page) -> the sequences of each group
Share = Callable[[Sequence[Sequence[int]], int], list[list[int]]]


class Table:
    """One sequence: its pages in order, and how many slots of them are committed."""

    __slots__ = ("length", "pages")

    def __init__(self, pages: list[int] | None = None, length: int = 0):
        self.pages, self.length = pages or [], length


class Pages:
    """The store: so many pages of `size` slots each, [1, G, pages * size, D] a layer, and who holds them."""

    def __init__(self, config: Config, *, pages: int, size: int = 64, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu"):
        """Memory is taken as pages are first written. Raises UsageError unless size is a power of two."""
        if size < 1 or size & (size - 1):
            raise UsageError(f"a page holds a power of two of slots, not {size}")
        self.size, self.count, self.device = size, pages, torch.device(device)
        shapes = [config.layer(i) for i in range(config.layers)]
        new = lambda layer: torch.empty(1, layer.kv_heads, pages * size, layer.head_dim, dtype=dtype, device=device)
        self.k = [new(layer) if layer.heads else None for layer in shapes]
        self.v = [new(layer) if layer.heads else None for layer in shapes]
        self.free = list(range(pages - 1, -1, -1))
        self.holders = [0] * pages
        self.reclaim: Callable[[int], int] = lambda wanted: 0  # asked for pages when none is free: what a prefix tree can spare
        self._stores = Stores([store[0] for pair in zip(self.k, self.v, strict=True) for store in pair if store is not None])

    @classmethod
    def like(cls, model, *, pages: int, size: int = 64) -> Pages:
        """A store that fits a decoder's shape, precision and device."""
        return cls(model.config, pages=pages, size=size, dtype=model.dtype, device=model.device)

    @staticmethod
    def bytes(config: Config, size: int, dtype: torch.dtype) -> int:
        """What one page takes."""
        shapes = [config.layer(i) for i in range(config.layers)]
        return 2 * size * dtype.itemsize * sum(s.kv_heads * s.head_dim for s in shapes if s.heads)

    def take(self) -> int:
        """A page that nobody holds. Raises TooLargeError where there is none."""
        if not self.free and not self.reclaim(1):
            raise TooLargeError(f"all {self.count} pages of {self.size} tokens are in use: allow more memory, or fewer "
                                "requests at once")
        page = self.free.pop()
        self.holders[page] = 1
        return page

    def hold(self, pages: Sequence[int]) -> None:
        """One holder more for each."""
        for page in pages:
            self.holders[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """One holder fewer for each; what nobody holds is free."""
        for page in pages:
            self.holders[page] -= 1
            assert self.holders[page] >= 0
            if not self.holders[page]:
                self.free.append(page)

    def fork(self, table: Table, length: int | None = None) -> Table:
        """A table that begins as this one does, on the same pages."""
        length = table.length if length is None else length
        pages = table.pages[: -(-length // self.size)]
        self.hold(pages)
        return Table(list(pages), length)

    def cut(self, table: Table, length: int) -> None:
        """Forget what lies past `length`, and give back pages that hold none of it."""
        kept = -(-length // self.size)
        self.drop(table.pages[kept:])
        del table.pages[kept:]
        table.length = length

    def wanted(self, table: Table, rows: int) -> int:
        """How many pages must be taken so that so many more rows can be written."""
        return sum(i >= len(table.pages) or self.holders[table.pages[i]] > 1 for i in self._written(table, rows))

    def _written(self, table: Table, rows: int) -> range:
        """Which of a table's pages so many rows would be written to."""
        return range(table.length // self.size, -(-(table.length + rows) // self.size) if rows else 0)

    def reserve(self, table: Table, rows: int) -> None:
        """Give a table pages of its own for so many rows behind its length. Raises TooLargeError where there are too few."""
        for i in self._written(table, rows):
            if i >= len(table.pages):
                table.pages.append(self.take())
            elif self.holders[old := table.pages[i]] > 1:
                new = self.take()
                if used := max(0, table.length - i * self.size):
                    self.move([old * self.size + n for n in range(used)], [new * self.size + n for n in range(used)])
                self.drop([old])
                table.pages[i] = new

    def slots(self, table: Table, start: int, count: int) -> list[int]:
        """Where slots start.. of a sequence lie in the store."""
        size = self.size
        return [table.pages[at // size] * size + at % size for at in range(start, start + count)]

    def move(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Copy slots of every layer, one after another."""
        kernels = library.load() if self.device.type == "cpu" else None
        if kernels is not None:
            self._stores.move(old, new, kernels=kernels)
            return
        source, to = (torch.tensor(list(slots), device=self.device) for slots in (old, new))
        for store in self._stores.stores:
            store[:, to] = store.index_select(1, source)


class PagedCache:
    """Sequences on the pages of one store, as the decoder takes them: light, made for a pass or for a while."""

    can = frozenset({"truncate", "commit", "gather", "tree", "fork", "pages"})
    # "pages": compiled layers read k[layer] and v[layer], [1, G, slots of the store, D], by way of `paging`

    def __init__(self, home: Pages, tables: list[Table], share: Share | None = None):
        """share: says which sequences' attention is worked out together; what comes out is the same."""
        self.home, self.tables, self.share = home, tables, share
        self.k, self.v = home.k, home.v
        self.capacity = home.count * home.size
        self.counts: list[int] | None = None  # rows of each sequence in a pass without padding

    @property
    def lengths(self) -> list[int]:
        return [table.length for table in self.tables]

    @property
    def device(self) -> torch.device:
        return self.home.device

    def reserve(self, rows: int | Sequence[int]) -> None:
        """Pages for so many rows behind every sequence, or behind each. Raises TooLargeError where there are too few."""
        self.counts, each = (None, [rows] * len(self.tables)) if isinstance(rows, int) else (list(rows), list(rows))
        for table, count in zip(self.tables, each, strict=True):
            self.home.reserve(table, count)

    def paging(self, counts: Sequence[int]) -> Paging:
        """Where everything lies, for the compiled layers."""
        width = max(1, max((len(table.pages) for table in self.tables), default=1))
        pages_BP = np.zeros((len(self.tables), width), dtype=np.int32)
        for row, table in zip(pages_BP, self.tables, strict=True):
            row[: len(table.pages)] = table.pages
        order = spans = None
        if self.share is not None and len(self.tables) > 1:
            starts = [0, *accumulate(counts)]
            groups = self.share([table.pages[: -(-table.length // self.home.size)] for table in self.tables], self.home.size)
            order = [row for group in groups for b in group for row in range(starts[b], starts[b + 1])]
            spans = [0, *(end for end in accumulate(sum(counts[b] for b in group) for group in groups))]
            spans = [place for i, place in enumerate(spans) if i == 0 or place > spans[i - 1]]
        return Paging(pages_BP, self.home.size.bit_length() - 1, self.home.count, order, spans)

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, visible_BTS: Any = None, lead: Any = None,
               **see: Any) -> Tensor:
        """Write this pass's keys and values behind each length, then attend, one sequence after another.

        Without padding the tensors are [R, heads, 1, D], and visible_BTS holds an entry [1, T, S] for each sequence.
        """
        whole_k, whole_v = self.home.k[layer], self.home.v[layer]
        assert whole_k is not None and whole_v is not None
        k, v = whole_k[0], whole_v[0]
        T = k_BGTD.shape[2]
        counts = self.counts or [T] * len(self.tables)
        slots = torch.tensor([slot for table, count in zip(self.tables, counts, strict=True)
                              for slot in self.home.slots(table, table.length, count)], device=self.device)
        for store, new in ((k, k_BGTD), (v, v_BGTD)):
            store[:, slots] = new.transpose(0, 1).reshape(store.shape[0], -1, store.shape[2])
        out = []
        for b, ((start, end), table) in enumerate(zip(pairwise([0, *accumulate(counts)]), self.tables, strict=True)):
            held = torch.tensor(self.home.slots(table, 0, table.length + end - start), device=self.device)
            ragged = self.counts is not None
            q = q_BHTD[start:end].transpose(0, 2) if ragged else q_BHTD[b : b + 1]  # [1, H, T, D]
            which = b if ragged or visible_BTS is None else min(b, len(visible_BTS) - 1)  # one may stand for all
            seen = None if visible_BTS is None else visible_BTS[which] if ragged else visible_BTS[which][None]
            led: Any = None if lead is None else tuple(one[start : start + 1] if ragged else one[b : b + 1] for one in lead)
            made = attention(q, k[:, held][None], v[:, held][None], lead=led,
                             visible_BTS=None if seen is None else seen[..., : len(held)], **see)
            out.append(made.transpose(0, 2) if ragged else made)
        return torch.cat(out)

    def commit(self, rows_B: Sequence[int | Sequence[int]]) -> None:
        """Keep rows of the last pass: a count keeps the first ones, a rising list of row numbers keeps those."""
        if len(rows_B) != len(self.tables):
            raise UsageError(f"commit got {len(rows_B)} entries for {len(self.tables)} sequences")
        old: list[int] = []
        new: list[int] = []
        for table, rows in zip(self.tables, rows_B, strict=True):
            start = table.length
            if isinstance(rows, int):
                table.length = start + rows
                continue
            if any(a >= b for a, b in pairwise((-1, *rows))):
                raise UsageError(f"commit takes rising row numbers, not {list(rows)}")
            table.length = start + len(rows)
            if rows and rows[-1] != len(rows) - 1:  # rows already in place are not copied
                places = self.home.slots(table, start, rows[-1] + 1)
                old += [places[row] for row in rows]
                new += places[: len(rows)]
        if old:
            self.home.move(old, new)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what lies past the given lengths."""
        for b, (table, n) in enumerate(zip(self.tables, lengths, strict=True)):
            if not 0 <= n <= table.length:
                raise UsageError(f"cannot truncate sequence {b} of {table.length} tokens to {n}")
            self.home.cut(table, n)

    def keep(self, batch: Sequence[int]) -> None:
        """Reorder, drop or repeat sequences: sequence b becomes what sequence batch[b] was. -1 makes an empty one."""
        before, self.tables = self.tables, [self.home.fork(self.tables[b]) if b >= 0 else Table() for b in batch]
        for table in before:
            self.home.cut(table, 0)

    def fork(self, batch: Sequence[int]) -> PagedCache:
        """An independent cache of the given sequences: on the same pages, until one of them writes."""
        return PagedCache(self.home, [self.home.fork(self.tables[b]) for b in batch], self.share)

    def grow(self, capacity: int) -> None:
        """A store does not grow. Raises TooLargeError where one sequence could not be as long."""
        if capacity > self.capacity:
            raise TooLargeError(f"{capacity} tokens do not fit into {self.home.count} pages of {self.home.size}")
