"""Accuracy against speed, as ParallelBench draws it: one curve for each family of policies on each task."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lithe.bench.ledger import Record
from lithe.bench.parallel._suite import PLAIN

SHARES = (0.99, 0.95, 0.9)  # of what one token a step scores
NUMBER = re.compile(r"[:,]\w+=-?[\d.]+(?=,|$| \+)")


@dataclass(frozen=True)
class Curve:
    """points: how many times fewer passes than one token a step and the accuracy there, rising, that one first.

    area: accuracy, a mean over speeds from 1 to the most that a canvas allows; past the last point it counts as nothing.
    keeps: for each of SHARES the largest speed at which that much of the accuracy is left.
    """

    task: str
    family: str
    points: list[tuple[float, float]]
    area: float
    keeps: tuple[float, ...]


def family(method: str) -> str:
    """A method without the numbers of its knobs.

    >>> family("steady:tokens=2,by=chance"), family("confident:floor=0.7 + equal_blocks:size=4")
    ('steady:by=chance', 'confident + equal_blocks')
    """
    parts = [NUMBER.sub("", part) for part in method.split(" + ")]
    return " + ".join(part if ":" in part or "," not in part else part.replace(",", ":", 1) for part in parts)


def curves(records: Iterable[Record]) -> list[Curve]:
    """Of records of one model and setting: every family with two policies and more, on every task."""
    by: dict[str, dict[str, Record]] = {}
    for found in records:
        if "error" not in found.measured:
            by.setdefault(found.settings["task"], {})[found.method] = found
    made = []
    for task, each in by.items():
        families: dict[str, list[tuple[float, float]]] = {}
        for method, found in each.items():
            if method != PLAIN:
                families.setdefault(family(method), []).append(_point(found, each[PLAIN]))
        first, most = _point(each[PLAIN], each[PLAIN]), max(each[PLAIN].measured["passes"])
        made += [_curve(task, name, [first, *sorted(points)], most) for name, points in families.items() if len(points) > 1]
    return made


def _point(found: Record, plain: Record) -> tuple[float, float]:
    right, passes = found.measured["right"], sum(found.measured["passes"])
    return sum(plain.measured["passes"]) / passes, right.count("1") / len(right)


def _curve(task: str, name: str, points: list[tuple[float, float]], most: int) -> Curve:
    speed, accuracy = np.array(points).T
    area = float(np.trapezoid(accuracy, speed)) / max(most - 1, 1)
    keeps = tuple(float(speed[accuracy >= share * accuracy[0]].max()) for share in SHARES)
    return Curve(task, name, points, area, keeps)
