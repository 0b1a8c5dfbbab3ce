"""What is run: a TOML file of methods, shifts, shares of the parameters and rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lithe import registry
from lithe.bench import matrix
from lithe.bench.tuning import FULL
from lithe.errors import FormatError, UsageError
from lithe.model.decoder import Decoder
from lithe.tune.targets import linears

SHIPPED = Path(__file__).with_name("plan.toml")
MOST = 1 << 20  # no count that a share asks for is larger
TRIES, CLOSE = 6, 0.97  # of moving a number towards a share, and the part of the share that is enough


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A text: files under the data folder, and how a row of them reads. Rows from first to last, where given, are taken."""

    name: str
    test: str
    train: str = ""
    text: str = "{text}"
    train_rows: tuple[int, int] | None = None
    test_rows: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method: its spec, in which {n} is the largest count and {x} the largest number that stay within the share.

    {half} is half of {n}, rounded up; {d} is the share as a density of the blocks' linear layers; {data} is the data folder.
    base: precision of the frozen weights. rate: where the search for the best one begins.
    """

    name: str
    rate: float
    spec: str = ""  # none: all weights
    base: str = "float32"

    @property
    def scales(self) -> bool:
        """Whether its size follows the share."""
        return any(word in self.spec for word in ("{n}", "{x}", "{d}"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a run, in tokens where nothing else is said, and what is run.

    share: where rates are searched; curve: the other shares. headline: the methods that are run with every seed, all where none
    is named.
    """

    steps: int
    tokens: int
    context: int
    chosen_by: int  # of held-out text: the best rate is found on these
    held_out: int  # what is reported is the loss on these
    share: float
    curve: tuple[float, ...]
    rates: tuple[float, ...]
    home: Shift
    shifts: tuple[Shift, ...]
    methods: tuple[Entry, ...]
    seeds: tuple[int, ...] = (0,)
    headline: tuple[str, ...] = ()
    searched: bool = True  # each method's rate; else its own is taken, and only that of all weights is searched
    every: int = 0  # steps from one look at both texts to the next, on the way; 0: none

    @property
    def sizes(self) -> dict[str, int]:
        """What decides what a run learns, beside its cell."""
        return {name: getattr(self, name) for name in ("steps", "tokens", "context", "chosen_by", "held_out")}

    @property
    def lead(self) -> tuple[str, ...]:
        """Methods that are run with every seed."""
        return self.headline or tuple(method.name for method in self.methods)


def read(path: Path = SHIPPED) -> Plan:
    """Raises FormatError for a file that is no plan, UsageError for one that is not there."""
    plan = matrix.read_plan(path, lambda said: matrix.made(Plan, said | {
        "home": matrix.made(Shift, said["home"]), "shifts": [matrix.made(Shift, s) for s in said.pop("shift")],
        "methods": [matrix.made(Entry, m) for m in said.pop("method")]}))
    if plan.methods[0].spec or plan.methods[0].name != FULL:
        raise FormatError(f"{path}: the first method must be {FULL!r}, without a spec: the others are measured by it")
    return plan


def narrowed(plan: Plan, names: tuple[str, ...], shifts: tuple[str, ...]) -> Plan:
    """Only these methods (all weights stay) and shifts, where some are named."""
    matrix.in_plan(names, [m.name for m in plan.methods])
    matrix.in_plan(shifts, [s.name for s in plan.shifts])
    methods = tuple(m for m in plan.methods if not names or m.name in (FULL, *names))
    return dataclasses.replace(plan, methods=methods, shifts=tuple(s for s in plan.shifts if not shifts or s.name in shifts))


def sized(entry: Entry, share: float, model: Decoder) -> str | None:
    """The spec that trains the most values within a share of the model's; None where even the least is more."""
    if not entry.scales:
        return entry.spec
    room = share * model.size

    def size(spec: str) -> int:
        found = registry.parse(spec.partition(" + ")[0])  # an objective beside it trains nothing of its own
        return found.entry.module.Method(found.knobs, model).size(model)

    if "{d}" in entry.spec:
        entries = sum(layer.in_features * layer.out_features for layer in linears(model).values())
        return entry.spec.replace("{d}", f"{math.floor(1e6 * room / entries) / 1e6:g}") if room < entries else None
    if "{x}" in entry.spec:
        return _scaled(entry.spec, share, room, size)
    fill = lambda n: entry.spec.replace("{n}", str(n)).replace("{half}", str(-(-n // 2)))
    if size(fill(1)) > room:
        return None
    low, high = 1, 2
    while high < MOST and size(fill(high)) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(fill(middle)) <= room else (low, middle)
    return fill(low)


def _scaled(spec: str, share: float, room: float, size: Callable[[str], int]) -> str | None:
    """The share itself, moved until what it trains is within the room and little is left of it."""
    best, number = None, share
    for _ in range(TRIES):
        filled = spec.replace("{x}", f"{number:.6g}")
        try:
            found = size(filled)
        except UsageError:  # less than the least that the method can train
            break
        if found <= room:
            best = filled
            if found >= CLOSE * room:
                break
        number *= room / max(found, 1) * (1.0 if found <= room else CLOSE)
    return best
