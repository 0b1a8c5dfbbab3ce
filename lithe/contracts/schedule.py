"""Schedules on a simulated engine, where a turn of n rows takes a + b n seconds: who is let in, reads and decodes, and when."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lithe.registry import Entry
from lithe.serve.line import Line


@dataclass(eq=False)
class Text:
    """A request as a schedule knows it, and when its tokens came."""

    arrives: float
    prompt: int
    tokens: int
    rows: int = 1  # of a decoding pass; each gives a token here
    seats: int = 1
    read: int = 0
    times: list[float] = field(default_factory=list)
    stops: int = 0  # times that it was preempted

    @property
    def length(self) -> int:
        return self.read

    @property
    def left(self) -> int:
        return 0 if self.read == self.whole - 1 else self.whole - self.read

    @property
    def whole(self) -> int:
        return self.prompt + len(self.times)


class Memory:
    """So many slots, each token taking one."""

    def __init__(self, slots: int):
        self.slots = slots
        self.held: dict[int, int] = {}

    def admit(self, text: Text) -> bool:
        return self.reserve(text, text.left + 1)

    def reserve(self, text: Text, rows: int) -> bool:
        wanted = max(self.held.get(id(text), 0), text.read + rows)
        if sum(self.held.values()) - self.held.get(id(text), 0) + wanted > self.slots:
            return False
        self.held[id(text)] = wanted
        return True

    def release(self, text: Text) -> None:
        self.held.pop(id(text), None)
        text.read = 0

    def ready(self, text: Text, most: int) -> int:
        return min(text.left, most)


@dataclass
class Trace:
    """What a run came to. turns: rows of each, and whether they were decodes that were skipped."""

    seconds: float = 0.0
    turns: list[int] = field(default_factory=list)
    skipped: int = 0  # times that a sequence could have decoded, and neither did nor was preempted
    texts: list[Text] = field(default_factory=list)

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring tokens of a text, in order of size."""
        return sorted(b - a for text in self.texts for a, b in pairwise(text.times))


def simulate(method: Any, texts: Iterable[Text], *, budget: int = 64, seats: int = 16, slots: int = 10**9, fixed: float = 1.0,
             each: float = 0.02, behind: float = 0.0, depth: float = 0.0) -> Trace:
    """Run a schedule to the end. fixed, each, behind: seconds of a turn, of a row, of each token that it attends to.

    depth: what the schedule knows of the last, in rows.
    """
    trace, memory, now = Trace(), Memory(slots), 0.0
    coming, running, waiting = sorted(texts, key=lambda text: text.arrives), list[Any](), list[Any]()
    trace.texts = list(coming)
    while coming or running or waiting:
        waiting += [text for text in coming if text.arrives <= now]
        coming = [text for text in coming if text.arrives > now]
        waiting.sort(key=lambda text: text.arrives)
        running.sort(key=lambda text: text.arrives)
        ready = [text for text in running if not text.left]
        line = Line(memory, running, waiting, budget=budget, seats=seats, depth=depth)
        method.turn(line)
        running, waiting = line.running, [*line.waiting, *line.preempted]
        for text in line.preempted:
            text.stops += 1
        rows, taken = line.used, {id(text) for text, _ in line.taken}
        trace.skipped += sum(id(text) not in taken and text not in line.preempted for text in ready)
        if not rows:
            assert line.preempted or coming, "nothing is done though something could be"
            now = max(now, coming[0].arrives) if coming and not running else now
            continue
        now += fixed + each * rows + behind * sum(count * (text.read + count / 2) for text, count in line.taken)
        trace.turns.append(rows)
        for text, count in line.taken:
            decodes = not text.left
            text.read += 1 if decodes else count
            if decodes or text.read == text.whole:
                text.times.append(now)
            if len(text.times) >= text.tokens:
                memory.release(text)
                running.remove(text)
        assert len(trace.turns) < 10**5, "it does not come to an end"
    trace.seconds = now
    return trace


def traffic(seed: int, many: int = 24, *, longest: int = 400, pace: float = 2.0) -> list[Text]:
    """Texts that arrive now and then: prompts short and long."""
    dice, now, made = random.Random(seed), 0.0, []
    for _ in range(many):
        now += dice.expovariate(1 / pace)
        prompt = dice.choice([dice.randint(1, 20), dice.randint(longest // 2, longest)])
        made.append(Text(now, prompt, dice.randint(1, 60), rows=dice.choice([1, 1, 3])))
    return made


def check_verbs(entry: Entry) -> None:
    """`turn` brings every text to its end, with seats and memory scarce or not; nobody is taken into a turn twice."""
    for seed in range(12):
        for knobs in spread(entry):
            method = entry.module.Method(entry.knobs(**knobs))
            for slots in (10**9, 700):
                trace = simulate(method, traffic(seed), slots=slots, seats=4 + seed)
                assert all(len(text.times) == text.tokens for text in trace.texts), "a text has not as many tokens as asked for"


def check_meets_budget(entry: Entry) -> None:
    """No turn has more rows than the budget, and nobody who can decode waits for a turn unless its memory is taken."""
    for seed in range(12):
        for knobs in spread(entry):
            method = entry.module.Method(entry.knobs(**knobs))
            for budget in (48, 64, 200):
                trace = simulate(method, traffic(seed), budget=budget, slots=1000)
                assert max(trace.turns) <= budget, f"a turn of {max(trace.turns)} rows, where {budget} were allowed"
                assert not trace.skipped, f"{trace.skipped} times one that could decode was left out"


def spread(entry: Entry) -> list[dict[str, int]]:
    """The defaults, and small values of every whole number."""
    fields = entry.module.Knobs.__dataclass_fields__
    return [{}, {name: 3 for name, one in fields.items() if type(one.default) is int}]
