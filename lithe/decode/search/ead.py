"""Let a small model write and call the large one while the small one is unsure. Changes the output.

Entropy-Adaptive Decoding (Simonds, 2025). One of two models is active and gives one token a step. The mean entropy of its
last laws decides: above a threshold the large model goes on, else the small one, and after a switch it stays for a while.
Whoever takes over first reads what it has missed, in one pass. Nothing is verified: where the small model writes, the text is
the small one's. `tau=-1,first=large` is plain decoding by the large model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import log
from random import Random

import torch

from lithe.card import Card, knob
from lithe.decode.lanes import CHUNK, Lanes
from lithe.decode.whole import Move, choose
from lithe.errors import UnsupportedError
from lithe.model.load import load, vocabulary_mismatch

CARD = Card(
    paper="Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference",
    row=75,
    promises=("level_zero_is_identity",),
    needs=("second_model",),
)
ZERO = {"tau": -1.0, "first": "large"}  # the knobs at which it changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("zoo:tiny-draft", "the small model: a folder or zoo:name, with the large one's tokenizer")
    tau: float = knob(1.0, "bits of mean entropy above which the large model writes; -1: always", low=-1.0)
    window: int = knob(5, "last tokens the mean is over", low=1, high=1024)
    stay: int = knob(10, "least tokens between two switches", low=1, high=100_000)
    first: str = knob("small", "the model that begins", choices=("small", "large"))
    chance: float = knob(-1.0, "the control: the large model by chance, with this probability; -1: off", low=-1.0, high=1.0)


@dataclass
class State:
    """Which model writes a text, for how many tokens it has, and how unsure it was."""

    large: bool
    dice: Random  # of the control; a text's own, so that it does not depend on batch mates
    since: int = 0
    bits: deque[float] = field(default_factory=deque)


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.vocab = knobs, model.config.vocab
        small = load(knobs.model, dtype=model.dtype, device=model.device, offline=model.offline)
        if reason := vocabulary_mismatch(model, small):
            raise UnsupportedError(f"{knobs.model} cannot write in this model's place: {reason}")
        if small.config.vocab != self.vocab or small.config.context < model.config.context:
            raise UnsupportedError(f"{knobs.model} has {small.config.vocab} tokens and a context of {small.config.context}: to "
                                   f"write in this model's place it needs {self.vocab} and at least {model.config.context}")
        self.lanes = {False: Lanes(small), True: Lanes(model)}
        self.states: dict[int, State] = {}

    def prefill(self, sequences):
        """Read new prompts; what a model missed while the other wrote is part of its turn."""
        fresh = {s.number for s in sequences} - set(self.states)
        begin = lambda s: State(self.knobs.first == "large", Random(repr(s.ids)))
        self.states = {s.number: self.states.get(s.number) or begin(s) for s in sequences}
        for large, lanes in self.lanes.items():
            lanes.sync(sequences)
            self._read(lanes, [s.ids[:-1] if s.number in fresh and self._writes(large, s) else [] for s in sequences])

    def advance(self, sequences):
        for s in sequences:
            self._turn(self.states[s.number])
        moves = [Move([0], [""])] * len(sequences)
        for large, lanes in self.lanes.items():
            mine = [self._writes(large, s) for s in sequences]
            if not any(mine):
                continue
            self._read(lanes, [s.ids[:-1] if my else [] for s, my in zip(sequences, mine, strict=True)])
            logits_BV = lanes.run([[s.ids[-1]] if my else [] for s, my in zip(sequences, mine, strict=True)]).scores[:, 0]
            lanes.commit(list(map(int, mine)))
            for b, s in enumerate(sequences):
                if mine[b]:
                    self._note(self.states[s.number], logits_BV[b])
                    moves[b] = Move([choose(s, logits_BV[b])], ["" if large else "small"])
        return moves

    def _writes(self, large: bool, sequence) -> bool:
        return self.states[sequence.number].large == large

    def _turn(self, state: State) -> None:
        """Switch where the entropy says so and the last switch is long enough ago."""
        if state.since >= self.knobs.stay and state.bits:
            unsure = sum(state.bits) / len(state.bits) > self.knobs.tau
            wished = unsure if self.knobs.chance < 0 else state.dice.random() < self.knobs.chance
            state.large, state.since = wished, state.since if wished == state.large else 0
        state.since += 1

    def _note(self, state: State, logits_V) -> None:
        """The entropy of the model's own law, in bits, whatever the request makes of it."""
        p_V = torch.softmax(logits_V.double(), -1)
        state.bits.append(float(-torch.special.xlogy(p_V, p_V).sum()) / log(2))
        if len(state.bits) > self.knobs.window:
            state.bits.popleft()

    def _read(self, lanes: Lanes, texts) -> None:
        """Let some lanes catch up with their texts, the others wait."""
        while any(len(text) > n for text, n in zip(texts, lanes.cache.lengths, strict=True)):
            most = min(CHUNK, lanes.cache.capacity - max(lanes.cache.lengths))
            pieces = [text[n : n + most] for text, n in zip(texts, lanes.cache.lengths, strict=True)]
            lanes.run(pieces, logits="none")
            lanes.commit([len(piece) for piece in pieces])
