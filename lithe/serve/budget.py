"""What an engine may take: rows of a turn, by the measured cost of passes, and memory; and the methods it goes by."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from lithe import registry
from lithe.errors import TooLargeError, UnsupportedError, UsageError
from lithe.model.checkpoint import available_memory
from lithe.model.decoder import Decoder
from lithe.model.paged import PagedCache, Pages, Table
from lithe.model.runtime import cost_curve

BETWEEN = 0.25  # seconds between two tokens that a reader does not mind
MEMORY = 0.4  # share of what is available that pages may take unless more is said
LEAST, MOST, GRAIN = 32, 2048, 16
PROBE, SHORT, LONG, TRIES = 16, 128, 2048, 4  # rows of a pass that is timed behind few and many tokens, and how often


def fills(model: Decoder, **settings: Any) -> bool:
    """Whether a model fills masked places, so that none of its texts lies in pages. Raises UsageError for settings of those."""
    if model.config.attends == "causal":
        return False
    if said := [name for name, value in settings.items() if value is not None]:
        raise UsageError(f"{said[0]} is about how texts are read from left to right, and {model.source or 'this model'} is a "
                         "diffusion model, which fills masked places: leave it out")
    return True


def profile(model: Decoder, between: float | None = None) -> tuple[int, float]:
    """The largest budget whose pass takes no longer than `between` seconds, and what each cached token adds to a row, in rows.

    T(n) is the stored curve of this model on this machine, measured now where there is none. Past the rows measured a pass
    is taken to cost as much more a row as its last stretch did, which products large enough to be bound by arithmetic do.
    What its own context adds is taken out, and added again by where the rows of a turn really stand.
    """
    wait = BETWEEN if between is None else between
    if not wait > 0:
        raise UsageError(f"the time between two tokens must be above 0 seconds, not {wait}")
    curve, each = cost_curve(model), of_depth(model)
    fits = [rows for rows in range(LEAST, MOST + 1, GRAIN) if curve.seconds(rows) - each * rows * curve.context <= wait]
    budget = max(fits, default=LEAST)
    return budget, each * budget / wait


@torch.inference_mode()
def of_depth(model: Decoder) -> float:
    """Seconds that a row takes longer for each token it attends to: by passes behind few and many, which are zeros."""
    far = min(LONG, model.config.context - PROBE)
    if far < 2 * SHORT:
        return 0.0
    store = Pages.like(model, pages=-(-(far + PROBE) // 64), size=64)
    for each in (*store.k, *store.v):
        if each is not None:
            each.zero_()
    ids, least = torch.zeros(PROBE, 1, dtype=torch.long, device=model.device), dict.fromkeys((SHORT, far), float("inf"))
    for _ in range(TRIES):
        for length in least:
            table = Table(list(range(store.count)), length)
            begun = perf_counter()
            model(ids, counts=[PROBE], cache=PagedCache(store, [table]), logits="none")
            least[length] = min(least[length], perf_counter() - begun)
    return max(0.0, least[far] - least[SHORT]) / (PROBE * (far - SHORT))


def policy(room: str, shelf: str, spec: str | None, promise: str) -> Any:
    """The method of a spec; without one the first numbered row on the shelf that keeps the promise."""
    if spec is None:
        fits = [one for one in registry.entries(room, shelf) if one.card.row is not None and promise in one.card.promises]
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
