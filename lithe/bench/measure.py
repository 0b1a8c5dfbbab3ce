"""One plan on one group of prompts, counted from the loop's steps alone: no method is asked what it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lithe.bench.memory import peak_mb, restart_peak
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan
from lithe.sampling.sequence import Sequence


@dataclass
class Run:
    """What the steps of one run add up to.

    A pass is counted once for each sequence in it, so plain decoding gives one token a pass at any batch size.
    """

    tokens: list[list[int]]
    passes: int = 0
    nodes: int = 0  # rows verified
    widest: int = 0  # most rows in one pass
    seconds: float = 0.0  # of all rounds, without prefill_s
    draft_s: float = 0.0  # of drafting and observing; a draft's own reading of the prompt is part of it
    prefill_s: float = 0.0  # of reading the prompts
    peak_mb: float = 0.0  # of the whole process
    lengths: Counter[int] = field(default_factory=Counter)  # passes by the tokens they gave

    @property
    def count(self) -> int:
        """Tokens of the whole group."""
        return sum(map(len, self.tokens))


def measure(plan: DecodePlan, sequences: list[Sequence]) -> Run:
    """Run a plan on a group of fresh sequences to their ends."""
    place = {sequence.number: i for i, sequence in enumerate(sequences)}
    done, clock = Run([[] for _ in sequences]), None
    restart_peak()
    for step in run(plan, sequences):
        if step.seconds is not clock:  # the steps of a round share one clock
            _add_seconds(done, step.seconds, first=clock is None)
            clock = step.seconds
        done.tokens[place[step.sequence.number]] += step.tokens
        done.lengths[len(step.tokens)] += 1
        done.passes += 1
        done.nodes += step.nodes
        done.widest = max(done.widest, step.nodes)
    done.peak_mb = peak_mb()
    return done


def _add_seconds(done: Run, seconds: dict[str, float], *, first: bool) -> None:
    """Only a run's first prefill is left out: what a method makes the loop read again later is its own cost."""
    rest = sum(seconds.values())
    if first:
        done.prefill_s = seconds["prefill"]
        rest -= done.prefill_s
    done.seconds += rest
    done.draft_s += seconds["draft"] + seconds["observe"]
