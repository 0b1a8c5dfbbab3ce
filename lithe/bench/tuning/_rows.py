"""From records to figures: the gain recovered, and what was forgotten for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

from lithe.bench.ledger import Record
from lithe.bench.tuning import FULL
from lithe.bench.tuning._suite import chosen_by, ran

ALONE = 0.8  # of the time on all threads, spent computing: less, and something else ran


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a shift at the best rate that was tried, as means over the seeds.

    gain: of the loss that tuning all weights takes off held-out text of the shift, the share that this took off; None where
    all weights were not tuned there. forgets: nats a token that text of the old kind costs more than before.
    """

    method: str
    spec: str
    base: str
    shift: str
    share: float | None
    seeds: int
    rate: float
    rates: int  # that were tried
    values: float  # that the result holds, as a share of the model's weights; more may have been trained on the way
    before: float
    after: float
    gain: float | None
    spread: float | None  # of the gain, between its least and its most over seeds
    forgets: float
    full_forgets: float | None  # what tuning all weights forgets on its way to the same loss, where the way was looked at
    bytes: dict[str, int]
    tokens_per_s: float | None  # of the run's steps; None where no record was taken on a machine of its own

    @property
    def beside(self) -> int:
        """Bytes that training holds beside the model's own: gradients, the optimizer's state, activations, the method's own."""
        return sum(self.bytes.get(name, 0) for name in ("gradients", "optimizer", "activations", "method"))


def rows(records: Iterable[Record]) -> list[Row]:
    """A row a method, shift and share, in the order they were first run. Of the same cell the newest record counts."""
    newest = {_cell(record): record for record in ran(records)}
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in newest.values():
        said = record.settings
        groups[record.method, said["base"], said["shift"], said["share"], said["spec"]].append(record)
    full = {key[2]: _best(group) for key, group in groups.items() if key[0] == FULL}
    return [_row(group, full.get(key[2])) for key, group in groups.items()]


def _cell(record: Record) -> tuple[Any, ...]:
    return tuple(record.settings[name] for name in ("method", "spec", "base", "shift", "share", "rate", "seed"))


def _best(group: list[Record]) -> list[Record]:
    """Those at the rate with the least loss on the text that chooses it, in the first seed; one a seed."""
    first = min(record.seed or 0 for record in group)
    rate = min((record for record in group if record.seed == first), key=chosen_by).settings["rate"]
    return [record for record in group if record.settings["rate"] == rate]


def _row(group: list[Record], full: list[Record] | None) -> Row:
    best = _best(group)
    said, found = best[0].settings, [record.measured for record in best]
    gains = [] if full is None else [_gain(record, full) for record in best]
    ways = [] if full is None else [forgets_at(_twin(record, full), record.measured["after"]) for record in best]
    met = [way for way in ways if way is not None]
    return Row(
        method=best[0].method, spec=said["spec"], base=said["base"], shift=said["shift"], share=said["share"], seeds=len(best),
        rate=said["rate"], rates=len({record.settings["rate"] for record in group}),
        values=found[0].get("values", found[0]["trainable"]) / found[0]["weights"], before=found[0]["before"],
        after=mean(m["after"] for m in found),
        gain=mean(gains) if gains else None, spread=max(gains) - min(gains) if len(gains) > 1 else None,
        forgets=mean(m["home_after"] - m["home_before"] for m in found), full_forgets=mean(met) if met else None,
        bytes=found[0]["bytes"],
        tokens_per_s=_speed(group))


def _twin(record: Record, full: list[Record]) -> Record:
    """All weights tuned with the same seed, or with the first where that one is missing."""
    return next((r for r in full if r.seed == record.seed), full[0])


def forgets_at(record: Record, loss: float) -> float | None:
    """What a run had forgotten when it first came down to a loss, between its looks by straight lines; None if it never did."""
    found = record.measured
    way = [(found["before"], found["home_before"]), *((after, home) for _, after, home in found.get("path", ()))]
    for (high, early), (low, late) in pairwise(way):
        if low <= loss <= high:
            return early + (late - early) * (high - loss) / max(high - low, 1e-12) - found["home_before"]
    return None


def at_equal_loss(records: Iterable[Record], names: Iterable[str]) -> dict[str, list[float]]:
    """What methods forget until they reach a loss that all of them reach, the highest that one ends at: by name, one a seed.

    Seeds that only some of them ran are left out. Each at its best rate.
    """
    wanted, groups = list(names), defaultdict(list)
    for record in {_cell(record): record for record in ran(records)}.values():
        groups[record.method].append(record)
    best = {name: {record.seed or 0: record for record in _best(groups[name])} for name in wanted if groups[name]}
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for seed in sorted(set.intersection(*(set(own) for own in best.values())) if len(best) == len(wanted) else ()):
        loss = max(own[seed].measured["after"] for own in best.values())
        met = {name: forgets_at(own[seed], loss) for name, own in best.items()}
        if all(value is not None for value in met.values()):
            for name, value in met.items():
                found[name].append(value)  # type: ignore[arg-type]
    return found


def _gain(record: Record, full: list[Record]) -> float:
    other = _twin(record, full).measured
    taken = other["before"] - other["after"]
    return (record.measured["before"] - record.measured["after"]) / taken if taken > 0 else float("nan")


def _speed(group: list[Record]) -> float | None:
    """Tokens a second of the quickest run that had its threads to itself: whose processor time tells of no waiting."""
    alone = [m["tokens"] / m["step_seconds"] for record in group if (m := record.measured).get("seconds")
             and m.get("cpu_seconds", 0) >= ALONE * record.threads * m["seconds"]]
    return max(alone, default=None)
