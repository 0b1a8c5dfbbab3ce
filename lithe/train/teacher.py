"""What a target tells those that learn from it: windows of text, and for each the states or logits that were asked for.

Signals are words: "tap:final" (states after the last norm), "tap:3" (the residual stream after layer 3), "logits". Ids are
always there. Axes: B rows, T tokens of a row, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lithe.errors import FormatError, UsageError
from lithe.model.decoder import NONE, Decoder
from lithe.train.batches import Batch, epoch_order

FINAL, LOGITS = "tap:final", "logits"
HELD = 0.05  # the share of windows, the last ones, that nothing is learned from


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A text cut into rows of `length` tokens, read in epochs. Called with a step it returns the numbers of that step's rows.

    prefix: the tokens that open every text of the target, put before each row and part of its length.
    """

    ids: np.ndarray
    rows: int
    length: int
    seed: int = 0
    prefix: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.length < 8 + len(self.prefix) or self.rows < 1:
            raise UsageError(f"rows of {self.length} tokens, {self.rows} a step, are too few to learn from")
        if self.count < 2:
            raise FormatError(f"the text has {len(self.ids)} tokens, too few for two rows of {self.length}: give more, or "
                              "shorten them")

    @property
    def count(self) -> int:
        return len(self.ids) // (self.length - len(self.prefix))

    @property
    def held(self) -> list[int]:
        """The rows kept for measuring."""
        return list(range(self.count - max(1, int(HELD * self.count)), self.count))

    def __call__(self, step: int) -> list[int]:
        learned, first = self.count - len(self.held), step * self.rows
        places = [divmod(row, learned) for row in range(first, first + self.rows)]
        return [int(epoch_order(self.seed, "", epoch, learned, 1)[0][i]) for epoch, i in places]

    def ids_BT(self, numbers: Sequence[int]) -> Tensor:
        span = self.length - len(self.prefix)
        rows = [[*self.prefix, *self.ids[n * span : (n + 1) * span].tolist()] for n in numbers]
        return torch.tensor(rows, dtype=torch.int64)


class Teacher:
    """Batches for train.loop.fit: each step's ids, and what the target says of them.

    The target runs in the training step itself; with `keep`, a folder, its states are written there in bfloat16 the first
    time a row is met, and read back from then on.
    """

    def __init__(self, model: Decoder, windows: Windows, signals: Sequence[str], keep: Path | None = None):
        self.model, self.windows = model, windows
        self.taps = [word.removeprefix("tap:") for word in signals if word.startswith("tap:")]
        legal = {"final", *map(str, range(model.config.layers))}
        if unknown := [word for word in signals if word != LOGITS and word.removeprefix("tap:") not in legal]:
            raise UsageError(f"the target has no signal {unknown[0]!r}; it has {LOGITS}, {FINAL} and tap:N of layer N")
        self.logits = LOGITS in signals
        if self.logits and "final" not in self.taps:
            self.taps.append("final")
        self.store = None if keep is None else Store(keep, windows, self.taps, model.config.width)

    def __call__(self, step: int, ending: bool = False) -> Batch:
        return self.batch(self.windows(step))

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The rows of these numbers with all signals, on the target's device."""
        ids_BT = self.windows.ids_BT(numbers).to(self.model.device)
        if int(ids_BT.max()) >= self.model.config.vocab:
            raise UsageError(f"the text holds token {int(ids_BT.max())}, outside the vocabulary of {self.model.config.vocab}")
        kept = None if self.store is None else self.store.read(numbers)
        with torch.no_grad():
            if kept is None:
                names = [int(tap) if tap.isdigit() else tap for tap in self.taps]
                taps = self.model(ids_BT, taps=names, logits=NONE).taps if names else {}
                kept = {str(name): state_BTC for name, state_BTC in taps.items()}
                if self.store is not None:
                    self.store.write(numbers, kept)
            batch = {"ids_BT": ids_BT} | {f"tap:{name}": _wide(state.to(ids_BT.device)) for name, state in kept.items()}
            if self.logits:
                batch[LOGITS] = _wide(self.model.unembed(batch[FINAL].to(self.model.dtype)))
        return batch


class Store:
    """States of rows already seen, a flat file of bfloat16 a tap, and which rows those are. Fits that need other taps of the
    same rows may share it."""

    def __init__(self, folder: Path, windows: Windows, taps: Sequence[str], width: int):
        folder.mkdir(parents=True, exist_ok=True)
        shape = (windows.count, windows.length, width)
        self.seen = {tap: _mapped(folder / f"{tap}.seen.bin", (windows.count,), np.uint8) for tap in taps}
        self.states = {tap: _mapped(folder / f"{tap}.bin", shape, np.int16) for tap in taps}

    def read(self, numbers: Sequence[int]) -> dict[str, Tensor] | None:
        """The rows' states, or None unless all of them are there."""
        if not all(seen[n] for seen in self.seen.values() for n in numbers):
            return None
        return {tap: torch.from_numpy(states[list(numbers)]).view(torch.bfloat16) for tap, states in self.states.items()}

    def write(self, numbers: Sequence[int], states: dict[str, Tensor]) -> None:
        for tap, state_BTC in states.items():
            self.states[tap][list(numbers)] = state_BTC.to("cpu", torch.bfloat16).view(torch.int16).numpy()
        for tap in states:
            self.states[tap].flush()  # before the rows count as seen
            self.seen[tap][list(numbers)] = 1


def _mapped(path: Path, shape: tuple[int, ...], kind: type) -> np.memmap:
    wanted = int(np.prod(shape)) * np.dtype(kind).itemsize
    if path.is_file() and path.stat().st_size != wanted:
        raise UsageError(f"{path} holds states of other rows: delete its folder, or take the settings it was made with")
    return np.memmap(path, kind, "r+" if path.is_file() else "w+", shape=shape)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
