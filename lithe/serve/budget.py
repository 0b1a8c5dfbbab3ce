"""What an engine may take: rows of a turn, by the measured cost of passes, and memory; and the methods it goes by."""

from __future__ import annotations

from typing import Any

from lithe import registry
from lithe.errors import TooLargeError, UnsupportedError, UsageError
from lithe.model.checkpoint import available_memory
from lithe.model.decoder import Decoder
from lithe.model.paged import Pages
from lithe.model.runtime import cost_curve

BETWEEN = 0.25  # seconds between two tokens that a reader does not mind
MEMORY = 0.4  # share of what is available that pages may take unless more is said
LEAST, MOST, GRAIN = 32, 2048, 16


def profile(model: Decoder, between: float | None = None) -> int:
    """The largest budget whose pass takes no longer than `between` seconds.

    T(n) is the stored curve of this model on this machine, measured now where there is none. Past the rows measured a pass
    is taken to cost as much more a row as its last stretch did, which products large enough to be bound by arithmetic do.
    """
    wait = BETWEEN if between is None else between
    if not wait > 0:
        raise UsageError(f"the time between two tokens must be above 0 seconds, not {wait}")
    curve = cost_curve(model)
    fits = [rows for rows in range(LEAST, MOST + 1, GRAIN) if curve.seconds(rows) <= wait]
    return max(fits, default=LEAST)


def policy(room: str, shelf: str, spec: str | None, promise: str) -> Any:
    """The method of a spec; without one the first numbered row on the shelf that keeps the promise."""
    if spec is None:
        fits = [entry for entry in registry.entries(room, shelf) if entry.card.row is not None and promise in entry.card.promises]
        if not fits:
            raise UnsupportedError(f"nothing on the shelf {room}/{shelf} promises {promise}: name a method")
        return fits[0].module.Method(fits[0].knobs())
    found = registry.parse(spec, shelf)
    return found.entry.module.Method(found.knobs)


def pages(model: Decoder, size: int, sequences: int, memory: int | None) -> int:
    """How many pages: for as many whole contexts as may run, as far as memory goes."""
    one = Pages.bytes(model.config, size, model.dtype)
    if memory is None:
        free = available_memory(model.device)
        memory = int(MEMORY * free) if free is not None else 2**30
    wanted = sequences * (-(-(model.config.context + 64) // size) + 1)
    most = min(wanted, memory // max(one, 1))
    if most < 2:
        raise TooLargeError(f"{memory} bytes hold {most} pages of {size} tokens, each {one} bytes: allow more "
                            "memory, or choose smaller pages")
    return most
