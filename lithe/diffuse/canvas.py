"""A canvas: the prompt, then places that are filled in any order. Axes: T places, P foretold places, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lithe.ops.truncate import entropy
from lithe.sampling.sequence import Sequence

OPEN = -1  # a place that is still masked


@dataclass
class Canvas:
    """One request on its way: what each place holds, and the round in which it was committed (0: the prompt's)."""

    sequence: Sequence
    ids_T: Tensor
    mask: int
    when_T: Tensor
    round: int = 0  # passes so far whose guesses were committed
    sure_T: Tensor = field(init=False)  # how likely each token was when it was committed

    def __post_init__(self) -> None:
        self.sure_T = torch.ones(len(self.ids_T), dtype=torch.float64)

    @classmethod
    def of(cls, sequence: Sequence, mask: int) -> Canvas:
        """The prompt of a request and room for all it may generate."""
        prompt = torch.tensor(sequence.ids)
        when = torch.cat((torch.zeros_like(prompt), torch.full((sequence.left,), OPEN)))
        return cls(sequence, torch.cat((prompt, torch.full((sequence.left,), mask))), mask, when)

    @property
    def prompt(self) -> int:
        """How many places the prompt takes."""
        return self.sequence.prompt

    @property
    def end(self) -> int:
        """One past the last place."""
        return len(self.ids_T)

    def open(self, start: int = 0, end: int | None = None) -> Tensor:
        """Places between start and end that are still masked, rising."""
        return (self.when_T[start:end] == OPEN).nonzero().flatten() + start

    def commit(self, places_P: Tensor, tokens_P: Tensor, sure_P: Tensor | float = 1.0) -> None:
        """Fill open places for good."""
        self.round += 1
        self.ids_T[places_P], self.when_T[places_P] = tokens_P, self.round
        self.sure_T[places_P] = torch.as_tensor(sure_P, dtype=torch.float64)

    def cut(self, end: int) -> None:
        """Drop all places from `end` on."""
        self.ids_T, self.when_T, self.sure_T = self.ids_T[:end], self.when_T[:end], self.sure_T[:end]

    def begun(self) -> int:
        """One past the last place before which nothing is open."""
        still = self.open()
        return int(still[0]) if len(still) else self.end


@dataclass
class Guess:
    """What a pass foretells of places: logits [P, V] by the request's law, and a token for each, drawn or likeliest."""

    places_P: Tensor
    logits_PV: Tensor
    tokens_P: Tensor

    @cached_property
    def law_PV(self) -> Tensor:
        return self.logits_PV.softmax(-1)

    @cached_property
    def sure_P(self) -> Tensor:
        """The probability of the chosen tokens."""
        return self.law_PV.gather(1, self.tokens_P.unsqueeze(1)).squeeze(1)

    @cached_property
    def entropy_P(self) -> Tensor:
        """In nats."""
        return entropy(self.logits_PV).flatten()

    @cached_property
    def margin_P(self) -> Tensor:
        """How much likelier the first token is than the second."""
        best = self.law_PV.topk(2).values
        return best[:, 0] - best[:, 1]

    def at(self, chosen: Tensor) -> Guess:
        """The same of some of the places, by a boolean or by numbers."""
        return Guess(self.places_P[chosen], self.logits_PV[chosen], self.tokens_P[chosen])

    def within(self, start: int, end: int) -> Guess:
        """The same of the places from start to end."""
        return self.at((self.places_P >= start) & (self.places_P < end))


def most(score_P: Tensor, count: int) -> Tensor:
    """Boolean [P]: the `count` largest; of equal ones the first."""
    chosen = torch.zeros(len(score_P), dtype=torch.bool)
    chosen[score_P.argsort(descending=True, stable=True)[:count]] = True
    return chosen
