"""From runs to rows: one row a method, each beside plain decoding on the same prompts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from lithe.bench import stats
from lithe.bench.measure import Run
from lithe.bench.quiet import Quiet

Runs = list[list[Run]]  # [repeat][group of prompts]


@dataclass(kw_only=True)
class Row:
    """What one method did, under the names of the JSON line. Counts are of the first repeat, times are medians over repeats.

    Reading the prompts is no part of the speeds. Intervals are 95 % over prompts, and over the repeats of each.
    """

    method: str
    lossless: bool  # whether the plan promises it for this law
    error: str | None = None  # why there are no numbers
    prompts: int = 0
    repeats: int = 0
    tokens: int | None = None
    passes: int | None = None
    tokens_per_pass: float | None = None
    tokens_per_pass_nonlooping: float | None = None  # over prompts that plain decoding does not end in a loop on
    tokens_per_s: float | None = None
    tokens_per_s_nonlooping: float | None = None  # over the same prompts
    speedup: float | None = None  # plain's seconds per token over the method's
    speedup_interval: tuple[float, float] | None = None
    speedup_nonlooping: float | None = None  # over the same prompts
    speedup_nonlooping_interval: tuple[float, float] | None = None
    kinds: dict[str, dict[str, Any]] | None = None  # for each kind of prompt: how many, tokens_per_pass, speedup, as above
    mean: float | None = None  # of the kinds' speedup_nonlooping, every kind weighing the same
    mean_interval: tuple[float, float] | None = None
    draft_share: float | None = None  # of the seconds: drafting and observing
    same: int | None = None  # prompts whose tokens are plain's to the last, in every repeat; None where sampling
    of: int = 0
    looping: float | None = None  # share of prompts on which more than a fifth of the 4-grams are repeats
    prefill_s: float | None = None  # to read one prompt, on average
    nodes_per_pass: float | None = None
    accepted: list[int] | None = None  # accepted[n]: passes that gave n drafted tokens and one more
    held_mb: float | None = None  # weights, caches and tables that the method holds beside the target, at the end
    peak_rss_mb: float | None = None  # of the process while this method ran, with every method's weights in it
    disturbed: bool = False  # something else ran on this machine: believe no time
    join_mean_us: float = 0.0
    join_max_us: float = 0.0
    join_stalled: float = 0.0
    interrupted: bool = False

    def json(self) -> dict[str, Any]:
        """Plain values by name, floats to six digits."""
        return {name: _short(value) for name, value in dataclasses.asdict(self).items()}


def fill(row: Row, runs: Runs, plain: Runs, *, greedy: bool, quiet: Quiet, seed: int) -> Row:
    """Fill a row from its runs and plain's, which are of the same groups and repeats."""
    first = runs[0]
    texts = [text for run in first for text in run.tokens]
    row.prompts = row.of = len(texts)
    row.repeats = len(runs)
    row.tokens, row.passes = sum(run.count for run in first), sum(run.passes for run in first)
    row.tokens_per_pass = row.tokens / row.passes
    row.nodes_per_pass = sum(run.nodes for run in first) / row.passes
    longest = max(max(run.lengths) for run in first)
    row.accepted = [sum(run.lengths[n] for run in first) for n in range(1, longest + 1)]
    row.looping = sum(map(stats.loops, texts)) / len(texts)
    everything = [run for repeat in runs for run in repeat]
    row.draft_share = sum(run.draft_s for run in everything) / sum(run.seconds for run in everything)
    row.prefill_s = median(sum(run.prefill_s for run in repeat) for repeat in runs) / len(texts)
    row.peak_rss_mb = max(run.peak_mb for run in everything)
    row.same = _same(runs, plain) if greedy else None
    row.join_mean_us, row.join_max_us, row.join_stalled = quiet.mean_us, quiet.max_us, quiet.lost
    row.disturbed = quiet.disturbed
    _speeds(row, runs, plain, seed)
    return row


def _speeds(row: Row, runs: Runs, plain: Runs, seed: int) -> None:
    both = [*columns(runs), *columns(plain)]
    row.tokens_per_s = float(stats.rate(*both[:2]))
    row.speedup = float(stats.ratio(*both))
    row.speedup_interval = stats.interval(stats.ratio, *both, seed=seed)
    calm = [i for i, run in enumerate(plain[0]) if not any(map(stats.loops, run.tokens))]
    if calm:
        both = [column[calm] for column in both]
        row.tokens_per_pass_nonlooping = sum(runs[0][i].count for i in calm) / sum(runs[0][i].passes for i in calm)
        row.tokens_per_s_nonlooping = float(stats.rate(*both[:2]))
        row.speedup_nonlooping = float(stats.ratio(*both))
        row.speedup_nonlooping_interval = stats.interval(stats.ratio, *both, seed=seed)


def columns(runs: Runs) -> tuple[stats.Floats, stats.Floats]:
    """Seconds and tokens, [groups, repeats]."""
    return (np.array([[run.seconds for run in repeat] for repeat in runs]).T,
            np.array([[float(run.count) for run in repeat] for repeat in runs]).T)


def _same(runs: Runs, plain: Runs) -> int:
    """Prompts whose tokens equal those of plain's first repeat, length included, in every repeat."""
    expected = [text for run in plain[0] for text in run.tokens]
    found = [[text for run in repeat for text in run.tokens] for repeat in runs]
    return sum(all(repeat[i] == text for repeat in found) for i, text in enumerate(expected))


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, (tuple, list)) else value
