"""What is run: a TOML file of methods, their ratios and what they are judged against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lithe.bench import matrix
from lithe.bench.compress import DENSE
from lithe.errors import FormatError

SHIPPED = Path(__file__).with_name("plan.toml")
MODELS = ("plain", "twin")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A way to compress. steps: as given to `lithe compress --method`, in which {x} stands for a ratio, or for whatever
    number the plan deals (bits, rank), and {s} for the seed. against: the entry that it is judged by at the same number."""

    name: str
    steps: tuple[str, ...]
    ratios: tuple[float, ...] = ()
    against: str = ""
    models: tuple[str, ...] = MODELS
    seeds: tuple[int, ...] = ()  # the plan's where not said
    tokens: int = 0  # of calibration text; the plan's where not said


@dataclass(frozen=True, kw_only=True)
class Plan:
    """tokens: of calibration text, in rows of `length`, drawn anew by each seed. documents: held-out ones that are scored,
    of each at most `context` tokens."""

    calibration: str
    held_out: str
    tokens: int
    length: int
    documents: int
    context: int
    methods: tuple[Entry, ...]
    seeds: tuple[int, ...] = (0,)

    @property
    def sizes(self) -> dict[str, int]:
        """What decides a result beside its cell and its texts."""
        return {name: getattr(self, name) for name in ("length", "documents", "context")}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run. steps: joined by " ; "."""

    method: str
    steps: str
    ratio: float | None
    on: str
    seed: int
    tokens: int


def cells(plan: Plan) -> Iterator[Cell]:
    """All runs: the dense models, then every method with the first seed, then the other seeds."""
    for on in MODELS:
        yield Cell(method=DENSE, steps="", ratio=None, on=on, seed=0, tokens=0)
    turns = max((len(entry.seeds or plan.seeds) for entry in plan.methods), default=0)
    for turn in range(turns):
        for entry in plan.methods:
            seeds = entry.seeds or plan.seeds
            for ratio in (entry.ratios or (None,)) if turn < len(seeds) else ():
                for on in entry.models:
                    yield Cell(method=entry.name, steps=filled(entry, ratio, seeds[turn]), ratio=ratio, on=on,
                               seed=seeds[turn], tokens=entry.tokens or plan.tokens)


def filled(entry: Entry, ratio: float | None, seed: int) -> str:
    """Its steps with the numbers put in."""
    text = " ; ".join(entry.steps).replace("{s}", str(seed))
    return text if ratio is None else text.replace("{x}", f"{ratio:g}")


def read(path: Path = SHIPPED) -> Plan:
    """Raises FormatError for a file that is no plan, UsageError for one that is not there."""
    plan = matrix.read_plan(path, lambda said: matrix.made(
        Plan, said | {"methods": [matrix.made(Entry, entry) for entry in said.pop("method")]}))
    names = [entry.name for entry in plan.methods]
    for entry in plan.methods:
        if names.count(entry.name) > 1 or entry.name == DENSE:
            raise FormatError(f"{path}: {entry.name!r} is named twice, or stands for what is not compressed")
        if entry.against and entry.against not in names:
            raise FormatError(f"{path}: {entry.name!r} is judged against {entry.against!r}, which is no method of this plan")
        if strange := set(entry.models) - set(MODELS):
            raise FormatError(f"{path}: {entry.name!r} runs on {', '.join(MODELS)}, not on {', '.join(sorted(strange))}")
        if ("{x}" in "".join(entry.steps)) != bool(entry.ratios):
            raise FormatError(f"{path}: {entry.name!r} must have both ratios and an {{x}} in its steps, or neither")
    return plan


def narrowed(plan: Plan, names: tuple[str, ...]) -> Plan:
    """Only these methods and what they are judged against, where some are named."""
    known = {entry.name: entry for entry in plan.methods}
    matrix.in_plan(names, list(known))
    wanted = {*names, *(known[name].against for name in names)} if names else set(known)
    return replace(plan, methods=tuple(entry for entry in plan.methods if entry.name in wanted))
