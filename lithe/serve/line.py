"""What a schedule sees of an engine, and the verbs by which it fills a turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

LEAST = 8  # rows that a turn reads if it can: prompts get on, however dear their rows are


class Item(Protocol):
    """A sequence under way, as a schedule knows it."""

    @property
    def length(self) -> int: ...  # tokens that are cached
    @property
    def left(self) -> int: ...  # tokens still to be read before it can decode; 0: it decodes
    @property
    def rows(self) -> int: ...  # of its next decoding pass: 1, or as many as it guesses and 1
    @property
    def seats(self) -> int: ...  # sequences that come of it


class Room(Protocol):
    """The memory that sequences take."""

    def admit(self, item) -> bool: ...  # whether there is room for all that it is to read
    def reserve(self, item, rows: int) -> bool: ...  # room for rows more
    def release(self, item) -> None: ...  # everything is given back
    def ready(self, item, most: int) -> int: ...  # how many of its tokens can be read now


class Line:
    """Who runs and who waits, first come first, larger priorities before all; and what was taken into this turn."""

    def __init__(self, room: Room, running: Sequence, waiting: Sequence, *, budget: int, seats: int, depth: float = 0.0):
        """budget: most rows of a turn. seats: sequences that may run. depth: what each cached token adds to a row, in rows."""
        self.room, self.running, self.waiting = room, list(running), list(waiting)
        self.budget, self.seats, self.depth = budget, seats - sum(item.seats for item in running), depth
        self.taken: list[tuple[Any, int]] = []  # with the rows of each
        self.admitted: list[Any] = []
        self.preempted: list[Any] = []

    @property
    def used(self) -> int:
        return sum(rows for _, rows in self.taken)

    @property
    def free(self) -> int:
        """Rows left of the budget."""
        return max(0, self.budget - self.used)

    def fits(self, item: Item) -> int:
        """Rows of its prompt that the turn has time for: attention makes those far behind dearer."""
        spare = max(0.0, self.budget - sum(self._cost(*taken) for taken in self.taken))
        each = 1 + self.depth * item.length
        rows = 2 * spare / (each + math.sqrt(each**2 + 2 * self.depth * spare))  # whose cost is what is left
        reads = any(one.left for one, _ in self.taken)
        return min(self.free, max(0 if reads else LEAST, int(rows)))

    def _cost(self, item: Item, rows: int) -> float:
        return rows * (1 + self.depth * (item.length + rows / 2))

    @property
    def decoding(self) -> list[Any]:
        return [item for item in self.running if not item.left]

    @property
    def reading(self) -> list[Any]:
        return [item for item in self.running if item.left]

    def decode(self, item: Item) -> int:
        """Take one's next pass into the turn; who came last gives up its memory where that is wanted. 0: that was itself."""
        return self._take(item, item.rows) if item in self.running else 0

    def read(self, item: Item, most: int) -> int:
        """Take at most so many tokens of a prompt into the turn; memory is found as for a decode."""
        rows = self.room.ready(item, most) if most > 0 and item in self.running else 0
        return self._take(item, rows) if rows else 0

    def _take(self, item: Item, rows: int) -> int:
        busy = {id(taken) for taken, _ in self.taken}
        while not self.room.reserve(item, rows):
            victim = next(other for other in reversed(self.running) if id(other) not in busy)
            self.preempt(victim)
            if victim is item:
                return 0
        self.taken.append((item, rows))
        return rows

    def admit(self) -> Any:
        """Let the first that waits run, if seats and memory allow it."""
        if not self.waiting or self.waiting[0].seats > self.seats or not self.room.admit(self.waiting[0]):
            return None
        item = self.waiting.pop(0)
        self.seats -= item.seats
        self.running.append(item)
        self.admitted.append(item)
        return item

    def preempt(self, item: Item) -> None:
        """Take its memory; it waits again, and will read anew what it had."""
        self.room.release(item)
        self.running.remove(item)
        self.preempted.append(item)
