"""Whole prompts first: whoever decodes waits until they are read.

Iteration-level batching with prompts before decodes, as engines had it before chunks. Few turns and an early first token; but
a long prompt stalls everybody for as long as it takes to read.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card

CARD = Card(paper="Orca: A Distributed Serving System for Transformer-Based Generative Models")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """There is nothing to set."""


class Method:
    def __init__(self, knobs: Knobs):
        pass

    def turn(self, line):
        for item in line.reading:
            line.read(item, item.left)
        while (not line.taken or line.free) and (item := line.admit()):
            line.read(item, item.left)
        if not line.taken:
            for item in line.decoding:
                line.decode(item)
