"""How many rows a turn may have: as many as one can wait for between two tokens, by the measured cost of passes."""

from __future__ import annotations

from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.model.runtime import cost_curve

BETWEEN = 0.25  # seconds between two tokens that a reader does not mind
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
