"""A second model's chain of likeliest tokens, drafted inside rounds that C takes (`stride`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Seq

from lithe.decode.lanes import Lanes
from lithe.kernels.copying import Reader, VoiceStruct
from lithe.kernels.rounds import Chain
from lithe.model.express import MOST
from lithe.sampling.sequence import Sequence


class Chained:
    """As `kernels.copying.Draft`, but that the text is read into the lanes of a model."""

    names = ("",)

    def __init__(self, lanes: Lanes, most: int, known: int, floor: float):
        """known: ids that the target knows. floor: no token follows one less likely."""
        self.lanes, self.most, self.known, self.floor, self.reader = lanes, most, known, floor, Reader()
        self.chain: Chain | None = None

    def begin(self, sequence: Sequence, most: int) -> int:
        """Where the first question lies; 0 where its passes cannot be taken in C."""
        read = self.ready(sequence, most)
        if read < 0:
            return 0
        self.reader.read[sequence.number] = read
        self.reader.ask(sequence.number, sequence.ids, most)
        return self.reader.address

    def ready(self, sequence: Sequence, most: int, least: int = 0) -> int:
        """How many tokens are cached, at least so many of those before the last; below 0 where passes cannot be taken in C."""
        lanes, last = self.lanes, len(sequence.ids) + most - 1
        rows = lanes.model.config.vocab
        unknown = rows < self.known and max(sequence.ids) >= rows
        if last > lanes.furthest or lanes.model.fast is None or unknown:
            return -1
        lanes.sync([sequence])
        if lanes.cache.lengths[0] < max(least, len(sequence.ids) - MOST):
            lanes.prefill()
        self.chain = lanes.model.fast.chain(lanes.cache, last, self.most, self.known, self.floor)
        return -1 if self.chain is None else lanes.cache.lengths[0]

    @property
    def alone(self) -> ctypes.Structure:
        assert self.chain is not None
        return self.chain.alone

    def voice(self, bits: Seq[int]) -> VoiceStruct:
        """Among several; whom to ask is said once it is ready."""
        said = (None, None) if self.chain is None else (self.chain.alone.propose, self.chain.alone.state)
        return VoiceStruct(propose=said[0], state=said[1], most=self.most, voices=(bits[0], bits[-1]))

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
