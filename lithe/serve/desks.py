"""The methods that an engine keeps ready. Plans are built on the threads of those who ask, between two turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lithe.loops import plan_of
from lithe.model.decoder import Decoder
from lithe.serve.job import Desk
from lithe.serve.request import QueueFullError

METHODS = 16  # kept ready at most


class Desks:
    """Desks by the spec of their method."""

    def __init__(self, model: Decoder, default: str | None):
        self.model, self.default = model, default
        self.held: dict[str | None, Desk] = {}
        self.lock = threading.RLock()  # held for the length of a turn
        self.guests = 0  # who wait for its end; several may come at once
        self._door = threading.Lock()

    def get(self, method: str | None, used: Callable[[], set[Desk]]) -> Desk:
        """The desk of a spec, made where it is new in the place of one that nobody uses.

        Raises LitheError where the spec is not legal for this model, QueueFullError where every place is in use.
        """
        desk = self.held.get(method)
        if desk is not None:
            return desk
        with self.between():
            if method in self.held:
                return self.held[method]
            idle = [name for name, one in self.held.items() if name != self.default and one not in used()]
            full = len(self.held) >= METHODS
            if full and not idle:
                raise QueueFullError(f"{len(self.held)} methods are in use already: try again later")
            desk = Desk(plan_of(self.model, method))
            self.held = {name: one for name, one in self.held.items() if not full or name != idle[0]} | {method: desk}
        return desk

    @contextmanager
    def between(self) -> Iterator[None]:
        """Between two turns."""
        self._came(1)
        try:
            with self.lock:
                yield
        finally:
            self._came(-1)

    def _came(self, many: int) -> None:
        with self._door:
            self.guests += many
