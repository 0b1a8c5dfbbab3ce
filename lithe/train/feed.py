"""Steps of examples, laid out as packed or padded rows. Axes: B rows, T tokens of a row.

Which examples make a step depends on seed and step alone; how they are laid out, into how many micro-batches and over how many
processes, changes neither the step's loss nor its gradient, since both are sums over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from lithe.errors import UsageError
from lithe.model.config import Config, Layer
from lithe.train import buckets
from lithe.train.batches import IGNORED, Batch
from lithe.train.text import Examples

OUTSIDE = -1  # the document number of padding: it is seen by nobody but itself


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The micro-batches of each step of a run over `examples`, read in epochs: every example once, shuffled anew.

    tokens: of a step, over all processes. context: longest packed row. packing: several examples a row, each seeing itself
    only; otherwise one a row, padded to the longest. bins: where not packing, draw each step from one of so many buckets of
    like length (0: from all). micro: most tokens, padding included, of a micro-batch. rank, processes: which part is ours.
    """

    examples: Examples
    tokens: int
    context: int
    packing: bool = True
    bins: int = 0
    micro: int | None = None
    seed: int = 0
    rank: int = 0
    processes: int = 1
    _ends: list[int] = field(default_factory=lambda: [0], init=False, repr=False)  # first step of each epoch met so far
    _epoch: dict[int, list[np.ndarray]] = field(default_factory=dict, init=False, repr=False)  # the last one looked at

    def __post_init__(self) -> None:
        if self.tokens < 1 or (self.micro is not None and self.micro < 1):
            raise UsageError("a step and a micro-batch hold at least one token")
        if self.packing and self.bins:
            raise UsageError("packed rows need no length buckets: choose one of them")
        if (longest := int(self.examples.lengths.max())) > self.context:
            raise UsageError(f"the longest example takes {longest} rows, more than the context of {self.context}")

    def __call__(self, step: int, ending: bool = False) -> list[Batch]:
        chosen = self.chosen(step)
        parts = [self._batch(rows) for rows in self._layout(chosen, self._limit)]
        ours = parts[self.rank :: self.processes]
        # Every process runs as many passes, since each of them gathers weights from all.
        return ours + [nothing()] * (-(-len(parts) // self.processes) - len(ours))

    @property
    def _limit(self) -> int:
        """Tokens of a micro-batch."""
        return min(self.micro or self.tokens, -(-self.tokens // self.processes))

    def chosen(self, step: int) -> np.ndarray:
        """The examples of a step."""
        while self._ends[-1] <= step:
            self._ends.append(self._ends[-1] + len(self._plan(len(self._ends) - 1)))
        epoch = next(e for e, (first, end) in enumerate(pairwise(self._ends)) if first <= step < end)
        return self._plan(epoch)[step - self._ends[epoch]]

    def steps(self, epochs: int) -> int:
        """How many steps so many epochs take."""
        return sum(len(self._plan(epoch)) for epoch in range(epochs))

    def cost(self, config: Config, steps: int = 4) -> float:
        """Multiplications a real token of a pass, padding and attention across a row counted, over the first steps of a run."""
        real = done = 0.0
        for step in range(min(steps, self.steps(1))):
            chosen = self.chosen(step)
            real += float(self.examples.lengths[chosen].sum())
            for rows in self._layout(chosen, self._limit):
                width = max(self.examples.lengths[row].sum() for row in rows)
                done += len(rows) * float(sum(layer_cost(config.layer(i), float(width)) for i in range(config.layers)))
        return done / real

    def _plan(self, epoch: int) -> list[np.ndarray]:
        if epoch not in self._epoch:
            self._epoch.clear()
            self._epoch[epoch] = self._cut(np.random.default_rng([self.seed, epoch]))
        return self._epoch[epoch]

    def _cut(self, dice: np.random.Generator) -> list[np.ndarray]:
        lengths = self.examples.lengths
        if self.bins:
            return buckets.batches(lengths[:, None], buckets.split(lengths, self.bins), self.tokens, dice)
        made: list[list[int]] = [[]]
        held = 0
        for i in dice.permutation(len(lengths)):
            if made[-1] and held + lengths[i] > self.tokens:
                made.append([])
                held = 0
            made[-1].append(int(i))
            held += lengths[i]
        return [np.array(step) for step in made]

    def _layout(self, chosen: np.ndarray, limit: int) -> list[list[list[int]]]:
        """Micro-batches of rows of examples, each at most `limit` tokens with its padding, unless one row is longer."""
        lengths = self.examples.lengths
        if self.packing:
            rows = pack(lengths[chosen], min(self.context, max(limit, int(lengths[chosen].max()))))
            filled = [[int(chosen[i]) for i in row] for row in rows]
        else:
            filled = [[int(i)] for i in chosen]
        filled.sort(key=lambda row: -lengths[row].sum())
        parts: list[list[list[int]]] = []
        for row in filled:  # longest first, so the first row of a part is its width
            if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]].sum() <= limit:
                parts[-1].append(row)
            else:
                parts.append([row])
        return parts

    def _batch(self, rows: list[list[int]]) -> Batch:
        width = int(max(self.examples.lengths[row].sum() for row in rows))
        ids = np.zeros((len(rows), width), np.int64)
        targets, docs, pos = np.full_like(ids, IGNORED), np.full_like(ids, OUTSIDE), np.zeros_like(ids)
        for b, row in enumerate(rows):
            at = 0
            for number, i in enumerate(row):
                tokens, counted = self.examples[i]
                place = slice(at, at + len(tokens) - 1)
                ids[b, place], docs[b, place], pos[b, place] = tokens[:-1], number, np.arange(len(tokens) - 1)
                targets[b, place] = np.where(counted[1:], tokens[1:], IGNORED)
                at += len(tokens) - 1
        batch = {"ids_BT": ids, "targets_BT": targets}
        if self.packing:  # padding behind single examples needs no mask: nothing looks ahead
            batch |= {"docs_BT": docs, "pos_BT": pos}
        else:
            batch["rows_B"] = self.examples.lengths[[i for row in rows for i in row]]
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def layer_cost(layer: Layer, rows: float) -> float:
    """Multiplications of a block's pass over one text of so many rows. Experts count as one."""
    heads = layer.heads * layer.head_dim
    weights = layer.width * (2 * heads + 2 * layer.kv_heads * layer.head_dim + 3 * layer.ffn)
    return rows * weights + 2 * rows * rows * heads


def pack(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Examples into rows of at most `room` tokens: each, longest first, into the fullest row that still takes it."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i in np.argsort(-lengths, kind="stable"):
        fitting = [r for r, free in enumerate(left) if free >= lengths[i]]
        r = min(fitting, key=lambda row: left[row]) if fitting else len(rows)
        if r == len(rows):
            rows.append([])
            left.append(room)
        rows[r].append(int(i))
        left[r] -= int(lengths[i])
    return rows


def nothing() -> Batch:
    """A batch that counts nothing, for a process that has no part in a step's last round."""
    return {"ids_BT": torch.zeros(1, 1, dtype=torch.int64), "targets_BT": torch.full((1, 1), IGNORED),
            "rows_B": torch.zeros(1, dtype=torch.int64)}
