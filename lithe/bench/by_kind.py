"""A row's figures for each kind of prompt, and their mean, in which every kind weighs the same however many prompts it has."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np

from lithe.bench import stats
from lithe.bench.measure import Run
from lithe.bench.rows import Row, Runs, columns


def fill(row: Row, runs: Runs, plain: Runs, kinds: list[str], *, seed: int) -> Row:
    """Fill `kinds`, `mean` and `mean_interval` of a row. kinds: of each group of prompts; "" is left out."""
    found, drawn = {}, []
    for kind in dict.fromkeys(filter(None, kinds)):
        groups = [i for i, own in enumerate(kinds[: len(plain[0])]) if own == kind]
        if groups:
            found[kind], draws = _figures(runs, plain, groups, seed)
            drawn += draws
    row.kinds = found
    calm = [figures["speedup_nonlooping"] for figures in found.values() if "speedup_nonlooping" in figures]
    if calm:
        row.mean = fmean(calm)
        low, high = np.quantile(np.mean(drawn, axis=0), stats.TAILS)
        row.mean_interval = float(low), float(high)
    return row


def _figures(runs: Runs, plain: Runs, groups: list[int], seed: int) -> tuple[dict[str, Any], list[stats.Floats]]:
    """The figures of one kind, and bootstrap draws of its speed-up where plain decoding does not loop."""
    calm = [i for i in groups if not any(map(stats.loops, plain[0][i].tokens))]
    figures: dict[str, Any] = {"prompts": sum(len(plain[0][i].tokens) for i in groups), "nonlooping": len(calm)}
    draws = []
    for some, name in ((groups, ""), (calm, "_nonlooping")):
        if some:
            both = [column[some] for column in (*columns(runs), *columns(plain))]
            figures[f"tokens_per_pass{name}"] = _per_pass([runs[0][i] for i in some])
            figures[f"speedup{name}"] = float(stats.ratio(*both))
            draws = [stats.draw(stats.ratio, *both, seed=seed)]
    return figures, draws if calm else []


def _per_pass(runs: list[Run]) -> float:
    return sum(run.count for run in runs) / sum(run.passes for run in runs)
