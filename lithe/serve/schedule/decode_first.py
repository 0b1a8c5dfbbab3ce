"""A batch is decoded to its end before anybody new is let in.

Batching by request, as serving systems did before Orca: no decode ever waits for a prompt, but every prompt waits for the
longest answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card

CARD = Card(paper="Batching by request")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """There is nothing to set."""


class Method:
    def __init__(self, knobs: Knobs):
        pass

    def turn(self, line):
        for item in line.decoding:
            line.decode(item)
        for item in line.reading:
            line.read(item, item.left)
        if not line.running:
            while line.admit():
                line.read(line.running[-1], line.running[-1].left)
