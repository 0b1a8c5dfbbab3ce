"""Leave out the same evenly spread layers for every token. Changes the output.

Unified Layer Skipping (Liu et al., 2024). The prompt is read by all layers; each token after it runs only some of them,
always the first and the last, the others evenly spread and as many as the wished speed-up asks. The set depends on nothing
but that number, so batches and caches stay simple: a skipped layer neither reads nor writes. Without the paper's fine-tuning
quality falls steeply; `speedup=1` is plain decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.decode.lanes import Lanes
from lithe.decode.whole import Move, choose

CARD = Card(
    paper="Accelerating Inference in Large Language Models with a Unified Layer Skipping Strategy",
    row=91,
    promises=("level_zero_is_identity",),
)
ZERO = {"speedup": 1.0}  # the knobs at which it changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    speedup: float = knob(2.0, "layers of the model for each one that runs; 1: all run", low=1.0, high=100.0)
    spread: str = knob("even", "which layers run; controls: the first or last", choices=("even", "first", "last"))


def kept(layers: int, speedup: float, spread: str = "even") -> list[int]:
    """The layers that run: the first and the last, and multiples of a step until there are as many as wanted."""
    many = max(int(layers / speedup), min(layers, 2))
    if spread != "even":
        return list(range(many)) if spread == "first" else list(range(layers - many, layers))
    if many >= layers:
        return list(range(layers))
    step = max(layers // (many - 1), 1)
    inner = [i for i in range(1, layers - 1) if i % step == 0][: many - 2]
    others = [i for i in range(1, layers - 1) if i not in inner]  # where rounding down leaves too few multiples
    return sorted({0, layers - 1, *inner, *others[: many - 2 - len(inner)]})


class Method:
    def __init__(self, knobs: Knobs, model):
        self.lanes, self.layers = Lanes(model), kept(model.config.layers, knobs.speedup, knobs.spread)

    def prefill(self, sequences):
        self.lanes.sync(sequences)
        self.lanes.prefill()

    def advance(self, sequences):
        logits_BV = self.lanes.run([[s.ids[-1]] for s in sequences], layers=self.layers).scores[:, 0]
        self.lanes.commit([1] * len(sequences))
        return [Move([choose(s, logits_V)], [""]) for s, logits_V in zip(sequences, logits_BV, strict=True)]
