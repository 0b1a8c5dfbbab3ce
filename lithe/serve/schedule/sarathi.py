"""Prompts are read in chunks beside the decodes, so that nobody's next token waits for another's prompt.

Sarathi-Serve (Agrawal et al., 2024), algorithm 3. A turn holds at most `budget` rows: every sequence that decodes first, then
the prompts under way in the order they came, then new ones, each as large a chunk as is left. A decode waits for no more than
one such turn. Memory that a decode lacks is taken from who came last, which starts over. The last chunk gives the first token.

Later chunks attend to more. Where the engine knows what that costs, a chunk has as many rows as the turn has time for. `low`
is the paper's variant, whose chunks shrink along a prompt by a law of their own: from the budget down to `low`, in `stages`
equal steps over the first `over` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob

CARD = Card(
    paper="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
    row=115,
    promises=("meets_budget",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    low: int = knob(0, "the chunk at the end of a long prompt; 0: all chunks are as large as the turn has time for", low=0)
    stages: int = knob(16, "steps in which chunks shrink", low=1)
    over: int = knob(8192, "tokens over which they shrink", low=1)


class Method:
    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def turn(self, line):
        for item in line.decoding:
            line.decode(item)
        for item in line.reading:
            line.read(item, self.chunk(item, line))
        while line.waiting and self.chunk(line.waiting[0], line) and (item := line.admit()):
            line.read(item, self.chunk(item, line))

    def chunk(self, item, line) -> int:
        """Most tokens of this prompt that the turn may take."""
        if not self.knobs.low:
            return line.fits(item)
        stage = min(item.length * self.knobs.stages // self.knobs.over, self.knobs.stages - 1)
        drop = (line.budget - self.knobs.low) * stage // max(self.knobs.stages - 1, 1)
        return min(line.free, max(line.budget - drop, 1))
