"""Several rounds of greedy decoding by one call into C: after a pass caches are cold, and Python costs 100 us between two.

Rounds of plain decoding, of several sequences, and rounds of one sequence whose draft is compiled. Where neither can be,
nothing is found, and the loop goes round by round, to the same tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lithe.decode.plan import DecodePlan
from lithe.kernels.express import Goal
from lithe.kernels.rounds import MOST
from lithe.sampling.sequence import Sequence

SMOOTH = 0.02  # seconds after which a call begins no further round: so text flows, and Ctrl-C is heard


class Stroke(NamedTuple):
    """One round: of each sequence the tokens and where they came from, rows of the pass, seconds by part."""

    found: list[list[tuple[int, str]]]
    nodes: int
    seconds: dict[str, float]


def strokes(plan: DecodePlan, sequences: list[Sequence]) -> tuple[list[Stroke], float]:
    """The next rounds, none where the loop must take them; and seconds of reading what was not cached."""
    if plan.search is not None or plan.asked is not None or not all([s.bare and not s.stops for s in sequences]):
        return [], 0.0
    if plan.draft is None:
        return _plain(plan, sequences)
    drafts = len(sequences) == 1 and not plan.taps and getattr(plan.draft, "compiled", None) is not None
    return _drafted(plan, sequences) if drafts and hasattr(plan.greedy, "walk_best") else ([], 0.0)


def forget(plan: DecodePlan, sequences: list[Sequence]) -> None:
    """Rounds that were made are not wanted: a draft that has read on begins these texts anew."""
    if plan.draft is not None:
        for sequence in sequences:
            plan.draft.compiled.forget(sequence.number)


def _plain(plan: DecodePlan, sequences: list[Sequence]) -> tuple[list[Stroke], float]:
    begun = plan.lanes.now()
    reading = _read(plan, sequences)
    goal = Goal(min(MOST, *[s.left for s in sequences]), _ends(sequences), seconds=SMOOTH)
    ran = plan.lanes.ahead([s.ids[-1:] for s in sequences], goal)
    if ran is None:
        return [], plan.lanes.now() - begun
    each = (plan.lanes.now() - begun - reading) / len(ran.tokens_BN[0])
    seconds = dict(draft=0.0, verify=each, walk=0.0, observe=0.0)
    return [Stroke([[(token, "")] for token in tokens], 1, seconds) for tokens in zip(*ran.tokens_BN, strict=True)], reading


def _drafted(plan: DecodePlan, sequences: list[Sequence]) -> tuple[list[Stroke], float]:
    begun = plan.lanes.now()
    reading, draft, (sequence,) = _read(plan, sequences), plan.draft.compiled, sequences
    asked = draft.begin(sequence, sequence.left - 1)
    if not asked:
        return [], reading
    most = min(MOST, plan.draft.calm()) if hasattr(plan.draft, "calm") else MOST
    found = plan.lanes.drafted(draft, asked, sequence.left, most, _ends(sequences), SMOOTH)
    draft.ended(sequence, [token for one in found for token in one.tokens])
    named: Any = lambda voice: "" if voice < 0 else draft.says(voice) or plan.source
    made = [Stroke([list(zip(one.tokens, map(named, one.voices), strict=True))], one.nodes, one.seconds) for one in found]
    rest = plan.lanes.now() - begun - reading - sum([sum(one.seconds.values()) for one in found])
    for one in found:
        one.seconds["walk"] += rest / len(found)  # what surrounds the call is the loop's, as walking is
    return made, reading if made else reading + rest


def _read(plan: DecodePlan, sequences: list[Sequence]) -> float:
    """Keep lanes in step; seconds of reading."""
    begun = plan.lanes.now()
    if not plan.lanes.sync(sequences):
        return 0.0
    plan.lanes.prefill(plan.taps, getattr(plan.draft, "read", None))
    return plan.lanes.now() - begun


def _ends(sequences: list[Sequence]) -> tuple[int, ...]:
    return tuple(frozenset[int]().union(*[s.eos for s in sequences]))
