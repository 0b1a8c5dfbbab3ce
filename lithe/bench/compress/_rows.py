"""From records to figures: what a method adds to the loss, and whether that is less than what it is judged against.

Axes: D bootstrap draws, P documents, S seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

import numpy as np

from lithe.bench.compress import DENSE
from lithe.bench.compress._plan import Cell, Plan
from lithe.bench.ledger import Record
from lithe.bench.stats import DRAWS, TAILS, Floats

SAME = 0.01  # of the bytes: so much more counts as equal


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method at a ratio on a model, as means over seeds. more: nats a token above the dense model. bytes: of its files, as a
    share of the dense model's. gains: what the method it is judged against loses more than this one, in nats a token, with a
    95 % interval over documents and seeds: those that both ran, or all where the plan has the other run once. None where
    nothing compares.
    """

    method: str
    ratio: float | None
    on: str
    seeds: int
    more: float
    kl: float
    bytes: float
    seconds: float
    against: str
    gains: float | None
    low: float | None
    high: float | None
    same_bytes: bool | None  # at most 1 % more than the other's
    paired: int  # seeds that gains are over

    @property
    def better(self) -> bool:
        return bool(self.same_bytes and self.low is not None and self.low > 0)


def rows(known: dict[Cell, Record], plan: Plan) -> list[Row]:
    """A row a method, ratio and model that ran, in the plan's order."""
    groups: dict[tuple[str, float | None, str], dict[int, Record]] = defaultdict(dict)
    for cell, record in known.items():
        if "loss" in record.measured:
            groups[cell.method, cell.ratio, cell.on][cell.seed] = record
    dense = {on: found for (method, _, on), found in groups.items() if method == DENSE}
    against = {entry.name: entry.against for entry in plan.methods}
    once = {entry.name for entry in plan.methods if len(entry.seeds or plan.seeds) == 1}
    order = {name: i for i, name in enumerate(against)}
    keys = sorted((key for key in groups if key[0] != DENSE), key=lambda key: (order[key[0]], key[1] or 0, key[2]))
    return [_row(key, groups[key], dense[key[2]][0], groups.get((against[key[0]], *key[1:]), {}), against[key[0]],
                 against[key[0]] in once)
            for key in keys if key[2] in dense]


def _row(key: tuple[str, float | None, str], own: dict[int, Record], dense: Record, other: dict[int, Record], against: str,
         once: bool) -> Row:
    of = lambda name, records: mean(record.measured[name] for record in records)
    other = dict.fromkeys(own, *other.values()) if once and other else other  # what draws nothing runs once
    both = sorted(own.keys() & other.keys())
    gains = low = high = None
    same = None
    if both:
        gain_PS, tokens_PS = compared([other[s] for s in both], [own[s] for s in both])
        gains = float(_share(gain_PS, tokens_PS))
        low, high = crossed(gain_PS, tokens_PS)
        sizes = of("bytes", [own[s] for s in both]), of("bytes", [other[s] for s in both])
        same = sizes[0] <= sizes[1] * (1 + SAME)
    return Row(method=key[0], ratio=key[1], on=key[2], seeds=len(own), more=of("loss", own.values()) - dense.measured["loss"],
               kl=of("kl", own.values()), bytes=of("bytes", own.values()) / dense.measured["bytes"],
               seconds=of("seconds", own.values()), against=against, gains=gains, low=low, high=high, same_bytes=same,
               paired=len(both))


def compared(worse: Iterable[Record], better: Iterable[Record]) -> tuple[Floats, Floats]:
    """The nats [P, S] that one loses more than the other on each document with each seed, and the documents' tokens."""
    nats = [np.array([record.measured["nats"] for record in records], dtype=np.float64).T for records in (worse, better)]
    tokens_P = np.array(next(iter(better)).measured["tokens"], dtype=np.float64)
    return nats[0] - nats[1], np.broadcast_to(tokens_P[:, None], nats[0].shape)


def crossed(gain_PS: Floats, tokens_PS: Floats, draws: int = DRAWS) -> tuple[float, float]:
    """95 % bootstrap interval of the gain a token: documents and seeds are drawn with replacement, a seed for all documents at
    once, since a calibration text moves them together."""
    (P, S), dice = gain_PS.shape, np.random.default_rng(0)
    rows_DP1, seeds_D1S = dice.integers(P, size=(draws, P, 1)), dice.integers(S, size=(draws, 1, S))
    low, high = np.quantile(_share(gain_PS[rows_DP1, seeds_D1S], tokens_PS[rows_DP1, seeds_D1S]), TAILS)
    return float(low), float(high)


def _share(gain_PS: Floats, tokens_PS: Floats) -> Floats:
    return gain_PS.sum((-1, -2)) / tokens_PS.sum((-1, -2))
