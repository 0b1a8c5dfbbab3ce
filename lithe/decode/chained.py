"""A second model's chain of likeliest tokens, drafted inside rounds that C takes (`stride`)."""

from __future__ import annotations

import ctypes

from lithe.decode.lanes import Lanes
from lithe.kernels.copying import Reader
from lithe.kernels.rounds import Chain
from lithe.model.express import MOST
from lithe.sampling.sequence import Sequence


class Chained:
    """As `kernels.copying.Draft`, but that the text is read into the lanes of a model."""

    def __init__(self, lanes: Lanes, most: int, known: int, floor: float):
        """known: ids that the target knows. floor: no token follows one less likely."""
        self.lanes, self.most, self.known, self.floor, self.reader = lanes, most, known, floor, Reader()
        self.chain: Chain | None = None

    def begin(self, sequence: Sequence, most: int) -> int:
        """Where the first question lies; 0 where its passes cannot be taken in C."""
        lanes, last = self.lanes, len(sequence.ids) + most - 1
        if last > lanes.furthest or lanes.model.fast is None:
            return 0
        lanes.sync([sequence])
        if len(sequence.ids) - lanes.cache.lengths[0] > MOST:
            lanes.prefill()
        read = lanes.cache.lengths[0]
        self.chain = lanes.model.fast.chain(lanes.cache, last, self.most, self.known, self.floor)
        if self.chain is None:
            return 0
        self.reader.read[sequence.number] = read
        self.reader.ask(sequence.number, sequence.ids, most)
        return self.reader.address

    @property
    def alone(self) -> ctypes.Structure:
        assert self.chain is not None
        return self.chain.alone

    def ended(self, sequence: Sequence, found: list[int]) -> None:
        """What is cached now, behind so many tokens more."""
        assert self.chain is not None
        read, guesses = self.chain.cached
        self.lanes.ids[0] = [*sequence.ids, *found][:read] + guesses
        self.lanes.cache.lengths[0] = len(self.lanes.ids[0])
        self.reader.read.clear()

    def says(self, voice: int) -> str:
        return ""

    def forget(self, number: int = -1) -> None:
        """Lanes are kept in step with any text."""
