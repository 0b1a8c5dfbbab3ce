"""Packed rows of tokens from weighted sources. Axes: B rows, T tokens of a row.

A batch is a function of (seed, step) alone, so a resumed run sees exactly what an uninterrupted one would. Each source is
read in epochs: every window of T tokens once, in a shuffled order, before any comes again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lithe.errors import FormatError, UsageError

IGNORED = -100  # a target no loss counts
PATTERN = 1000  # rows after which the mixture has been met exactly

Batch = dict[str, Tensor]


def real(batch: Batch) -> Tensor:
    """Which tokens are no padding, boolean [B, T]: those of a document, or of the rows that the batch says are real."""
    ids_BT = batch["ids_BT"]
    if "docs_BT" in batch:
        return batch["docs_BT"] >= 0
    if "rows_B" in batch:
        return torch.arange(ids_BT.shape[1], device=ids_BT.device) < batch["rows_B"].unsqueeze(1)
    return torch.ones_like(ids_BT, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Batches of `rows` rows of `length` tokens. sources: flat uint16 token files by name; weights: their shares of rows.

    Called with a step it returns ids_BT and targets_BT (the ids one place on), and docs_BT, the number of the document
    within the row, where `end` (the id that begins a document) is given.
    """

    sources: dict[str, Path]
    weights: dict[str, float]
    rows: int
    length: int
    seed: int = 0
    end: int | None = None
    _tokens: dict[str, np.ndarray] = field(init=False, repr=False)
    _pattern: tuple[np.ndarray, np.ndarray, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        missing = sorted(set(self.weights) - set(self.sources))
        if missing or not self.weights or min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise UsageError(f"weights must be shares of the sources {sorted(self.sources)}; unknown: {missing}")
        tokens = {name: np.memmap(self.sources[name], np.uint16, "r") for name, share in self.weights.items() if share}
        for name, ids in tokens.items():
            if len(ids) <= 2 * self.length:  # one window must fit behind any phase
                raise FormatError(f"{self.sources[name]} has {len(ids)} tokens: too few for rows of {self.length}")
        object.__setattr__(self, "_tokens", tokens)
        object.__setattr__(self, "_pattern", self._mixture())

    def __call__(self, step: int, ending: bool = False) -> Batch:
        first = step * self.rows
        windows = [self._window(row) for row in range(first, first + self.rows)]
        ids_BT = torch.from_numpy(np.stack(windows).astype(np.int64))
        batch = {"ids_BT": ids_BT[:, :-1].contiguous(), "targets_BT": ids_BT[:, 1:].contiguous()}
        if self.end is not None:
            batch["docs_BT"] = (batch["ids_BT"] == self.end).cumsum(1)
        return batch

    def place(self, row: int) -> tuple[str, int]:
        """The source of a row of the run, and how many rows of that source came before it."""
        source, rank, counts = self._pattern
        turn, i = divmod(row, PATTERN)
        return list(self._tokens)[source[i]], int(turn * counts[source[i]] + rank[i])

    def _mixture(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For PATTERN rows: whose turn it is, the rank among that source's rows, and the rows of each source."""
        share = np.array([self.weights[name] for name in self._tokens])
        edges = np.round(np.cumsum(share / share.sum()) * PATTERN).astype(int)
        counts = np.diff(edges, prepend=0)
        source = np.random.default_rng(self.seed).permutation(np.repeat(np.arange(len(counts)), counts))
        rank = np.empty(PATTERN, int)
        for s, count in enumerate(counts):
            rank[source == s] = np.arange(count)
        return source, rank, counts

    def span(self, row: int) -> tuple[str, int]:
        """The source of a row of the run, and the place of its first token there: the rank-th window over all epochs."""
        name, rank = self.place(row)
        # One window less than fit, for the phase that shifts their borders from epoch to epoch.
        windows = (len(self._tokens[name]) - 1) // self.length - 1
        epoch, i = divmod(rank, windows)
        order, phase = epoch_order(self.seed, name, epoch, windows, self.length)
        return name, int(order[i]) * self.length + phase

    def _window(self, row: int) -> np.ndarray:
        name, start = self.span(row)
        return np.asarray(self._tokens[name][start : start + self.length + 1])


@lru_cache(maxsize=64)
def epoch_order(seed: int, name: str, epoch: int, windows: int, length: int) -> tuple[np.ndarray, int]:
    """The order of a source's windows in one epoch, and by how much their borders are shifted."""
    dice = np.random.default_rng([seed, epoch, *name.encode()])
    return dice.permutation(windows), int(dice.integers(length))


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Other batches once the schedule's ending has begun: longer rows, say."""

    stable: Rows
    ending: Rows

    def __call__(self, step: int, ending: bool = False) -> Batch:
        return (self.ending if ending else self.stable)(step)
