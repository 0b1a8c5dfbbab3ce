"""From records to figures: each policy beside one token a step on the same problems. Axes: P problems."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lithe.bench import stats
from lithe.bench.ledger import Record
from lithe.bench.parallel._suite import PLAIN
from lithe.errors import UsageError

ENOUGH = 0.8  # of one token a step: on tasks below, a policy's loss says little


@dataclass(frozen=True, kw_only=True)
class Row:
    """A policy over some tasks.

    lost: points of accuracy less than one token a step, fewer: its passes over the policy's, both with 95 % intervals, paired
    by problem. headroom: the share of the passes that the oracle saves. faster: in seconds for the same places.
    """

    method: str
    tasks: int
    problems: int
    accuracy: float
    lost: float
    lost_interval: tuple[float, float] | None
    passes: float
    tokens_per_pass: float
    fewer: float
    fewer_interval: tuple[float, float] | None
    headroom: float | None
    rows: float  # of the model that ran, a problem
    faster: float
    error: str = ""

    def json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def good(records: Iterable[Record], part: str = "") -> list[str]:
    """Tasks on which one token a step is right often enough to lose something."""
    plain = {r.settings["task"]: r for r in records if r.method == PLAIN and r.settings["part"] == part}
    return [task for task, r in plain.items() if _right(r).mean() >= ENOUGH]


def rows(records: Iterable[Record], tasks: Iterable[str], best: str = "") -> list[Row]:
    """A row a policy, over these tasks. best: the method whose passes are the least that is possible."""
    held = [r for r in records if r.settings["task"] in set(tasks)]
    by: dict[str, dict[str, Record]] = {}
    for r in held:
        by.setdefault(r.method, {})[r.settings["task"]] = r
    plain = by.get(PLAIN, {})
    least = _passes(by[best].values()) if best in by and not any("error" in r.measured for r in by[best].values()) else None
    return [_row(method, each, plain, least) for method, each in by.items() if each.keys() == plain.keys()]


def against(own: Iterable[Record], other: Iterable[Record]) -> Row:
    """One policy beside another on the same problems, in whose place it stands: `lost` and `fewer` are against that one.

    Raises UsageError where their problems are not the same.
    """
    mine, theirs = ({r.settings["task"]: r for r in each} for each in (own, other))
    if not mine or {t: r.prompts_hash for t, r in mine.items()} != {t: r.prompts_hash for t, r in theirs.items()}:
        raise UsageError("two policies are compared on the same problems")
    return _row(next(iter(mine.values())).method, mine, theirs, None)


def same_texts(own: Record, other: Record) -> tuple[int, int]:
    """How many answers two records have in common, and of how many."""
    each = [[r.measured["texts"][i : i + 4] for i in range(0, len(r.measured["texts"]), 4)] for r in (own, other)]
    return sum(a == b for a, b in zip(*each, strict=True)), len(each[0])


def _row(method: str, own: dict[str, Record], plain: dict[str, Record], least: float | None) -> Row:
    failed = next((r.measured["error"] for r in own.values() if "error" in r.measured), "")
    if failed:
        none: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__, 0.0)
        return Row(**none | {"method": method, "error": failed, "lost_interval": None, "fewer_interval": None, "headroom": None,
                             "tasks": len(own), "problems": 0})
    pairs = [(own[task], plain[task]) for task in own]
    joined = lambda read, which: np.concatenate([read(pair[which]) for pair in pairs])[:, None]
    right, was = joined(_right, 0), joined(_right, 1)
    passes, before = joined(_counted, 0), joined(_counted, 1)
    count, total = len(right), _passes(plain.values())
    lost = lambda a, b: 100 * (b.mean((-1, -2)) - a.mean((-1, -2)))
    fewer = lambda a, b: b.sum((-1, -2)) / a.sum((-1, -2))
    measured = [r.measured for r in own.values()]
    saved = None if least is None or total == least else (total - _passes(own.values())) / (total - least)
    return Row(method=method, tasks=len(own), problems=count, accuracy=float(right.mean()), lost=float(lost(right, was)),
               lost_interval=stats.interval(lost, right, was), passes=float(passes.mean()),
               tokens_per_pass=sum(m["places"] for m in measured) / float(passes.sum()), fewer=float(fewer(passes, before)),
               fewer_interval=stats.interval(fewer, passes, before), headroom=saved,
               rows=sum(m["rows"] for m in measured) / count,
               faster=sum(r.measured["seconds"] for r in plain.values()) / sum(m["seconds"] for m in measured))


def _right(record: Record) -> np.ndarray:
    return np.array([int(bit) for bit in record.measured.get("right", "")], float)


def _counted(record: Record) -> np.ndarray:
    return np.array(record.measured["passes"], float)


def _passes(records: Iterable[Record]) -> float:
    return float(np.concatenate([_counted(r) for r in records]).mean())
