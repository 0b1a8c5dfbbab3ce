"""Parts of measure.py on long canvases and answers of several lines, by the model that was trained on both."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lithe.bench.ledger import Record
from lithe.bench.parallel._rows import ENOUGH
from lithe.bench.parallel._tasks import LINES, NUMBERS, TASKS

if TYPE_CHECKING:
    from measure import Desk

LONG = "zoo:tiny-diffusion-long"
LISTS = [task for task in TASKS if task not in (*NUMBERS, "square")]
SLOW, BLOCKS = "equal_blocks:size=32", "confident + equal_blocks:size=32"

POLICIES = ("confident", "confident:floor=0.7", "confident + dual_cache")  # what blocks are compared under
CACHES = ("dual_cache", "prefix_cache", "dual_cache:prompt=true")
SIZES = (4, 6, 8, 16)
ABLATED = ("floor=0", "floor=0.9", "floor=2", "delimiters=ant")  # floors of a delimiter, and one that ends no line


def right(records: Iterable[Record]) -> list[str]:
    """Tasks of these records that came out right often enough to lose something."""
    return [r.settings["task"] for r in records if r.measured["right"].count("1") >= ENOUGH * len(r.measured["right"])]


def run(desk: Desk, tasks: list[str], methods: list[str], count: int, part: str, **settings: Any) -> list[Record]:
    return desk.run(tasks, methods, count, part=part, model=LONG, label=LONG, **settings)


def window(desk: Desk, given: argparse.Namespace) -> None:
    """Windows on a canvas of 256 places, one token a step, on tasks that are right without one."""
    part = "window 256"
    able = right(run(desk, [*LISTS[1:4], "shuffle", *LINES], [""], 8, part, places=256))
    knobs = ("", ":every=16", ":every=64", ":recent=false", ":prompt=true", " + end_of_text")
    run(desk, able, [f"window_diffusion{each}" for each in knobs], 8, part, places=256)


def lines(desk: Desk, given: argparse.Namespace) -> None:
    """AdaBlock on answers of several lines beside equal blocks; what the delimiter's floor does; a delimiter that is none."""
    part = "lines"
    tasks = right(run(desk, list(LINES), [""], 60, part))
    single = [task for task in tasks if task != "shuffle_lines"]  # of many answers a cache leaves none
    for policy in POLICIES:
        for size in SIZES:
            both = [f"{policy} + {blocks}:size={size}" for blocks in ("equal_blocks", "adablock")]
            run(desk, single if "cache" in policy else tasks, both, 60, part)
    run(desk, single, [f"{POLICIES[-1]} + adablock:size=8,{each}" for each in ABLATED], 60, part)


def speed(desk: Desk, given: argparse.Namespace) -> None:
    """Canvases of 512 places, all of them filled, with and without a cache, on tasks that are right without one: what is sure
    at once on many problems, one token a step on few."""
    part, more = "cached 512", dict(places=496, whole=True)
    able = right(run(desk, [*LISTS, *LINES], [BLOCKS], 10, part, **more))
    run(desk, able, [f"{BLOCKS} + {cache}" for cache in CACHES], 10, part, **more)
    run(desk, able[1::2], [SLOW, f"{SLOW} + {CACHES[-1]}"], 4, part, **more)


PARTS = {"window": window, "lines": lines, "speed-cached": speed}
