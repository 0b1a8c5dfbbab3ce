"""Sequences with a common beginning read its keys once.

Hydragen (Juravsky et al., 2024). Attention over a shared prefix and over what is each sequence's own are worked out apart: one
product of all sequences' queries with the prefix's keys, stored once, then each sequence's own keys; the parts are merged by
their log-sum-exp. In a tree of prefixes every node is read once for all sequences below it. Exact.

Here a group holds sequences whose tables begin with the same pages, so ordered that those which share more are neighbours.
The compiled attention takes the query heads of neighbours together over what they have in common, chunk by chunk of 256 keys,
and merges every row's chunks in one fixed order, so that the result is that of each sequence alone to the bit. Without
compiled layers the pages are stored once, but read by each.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob

CARD = Card(
    paper="Hydragen: High-Throughput LLM Inference with Shared Prefixes",
    row=107,
    promises=("same_tokens",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    sequences: int = knob(2, "fewest sequences that are read together", low=2)
    tokens: int = knob(64, "fewest tokens that they must have in common", low=1)


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def group(self, pages, size):
        """Sequences by the pages they begin with: those that share most are neighbours."""
        least = -(-self.knobs.tokens // size)
        groups: dict = {}
        for b in sorted(range(len(pages)), key=lambda b: pages[b]):
            begin = tuple(pages[b][:least]) if len(pages[b]) >= least else ("alone", b)
            groups.setdefault(begin, []).append(b)
        large = lambda group: len(group) >= self.knobs.sequences
        return [part for group in groups.values() for part in ([group] if large(group) else [[b] for b in group])]
