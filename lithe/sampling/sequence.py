"""A request on its way: the tokens so far, where each came from, and when to stop."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Protocol

import torch

from lithe.errors import TooLargeError, UsageError
from lithe.ops.accept import Dice
from lithe.sampling.constraint import Constraint, Program
from lithe.sampling.law import Law

_numbers = itertools.count()


class Stream(Protocol):
    """Turns token ids into text piece by piece."""

    def push(self, token: int) -> str: ...
    def flush(self) -> str: ...


class Sequence:
    """Committed ids and the settings of one request. Its last id is the root of the next draft: not yet in any cache."""

    def __init__(self, prompt: Iterable[int], *, limit: int, context: int, law: Law | None = None, seed: int = 0,
                 eos: Iterable[int] = (), stops: Iterable[str] = (), stream: Stream | None = None, adapter: int | None = None,
                 constraint: Program | None = None):
        """limit: most tokens to generate. context: most tokens the model can hold. stops: strings that end the text.

        adapter: the number of what is attached to the model for this request; None is the model's default. constraint: what the
        text may be; it ends where nothing may follow, as at a stop string.
        """
        self.number = next(_numbers)
        self.ids = list(prompt)
        if not self.ids:
            raise UsageError("the prompt is empty: give at least one token, or a tokenizer that adds a beginning token")
        if len(self.ids) >= context:
            raise TooLargeError(f"the prompt has {len(self.ids)} tokens, but the model's context is {context}, of which one "
                                "must be left to generate")
        if limit < 1:
            raise UsageError(f"max_tokens must be at least 1, not {limit}")
        if not -(2**63) <= seed < 2**64:
            raise UsageError(f"seed {seed} does not fit into 64 bits")
        self.prompt = len(self.ids)
        self.limit = min(limit, context - self.prompt)
        self.law = law or Law()
        self.dice = Dice(torch.Generator().manual_seed(seed))
        self.eos, self.stops, self.stream = frozenset(eos), tuple(s for s in stops if s), stream
        if self.stops and stream is None:
            raise UsageError("stop strings need a tokenizer")
        self.adapter = adapter
        self.prediction: tuple[int, ...] = ()  # what the text may well be, as the request says
        self.constraint = None if constraint is None else Constraint(constraint, self.eos)
        self.bare = constraint is None and self.law.bare  # neither warps nor a constraint change what a pass tells
        self.sources: list[str] = []
        self.finished: str | None = None  # "eos", "stop" or "length"
        self._held = ""  # text that may turn out to begin a stop string

    @property
    def tokens(self) -> list[int]:
        """What was generated so far."""
        return self.ids[self.prompt :]

    @property
    def left(self) -> int:
        """How many more tokens may be generated."""
        return self.limit - (len(self.ids) - self.prompt)

    def push(self, token: int, source: str = "") -> str:
        """Commit one token and return the text that is now certain. Sets `finished` where the sequence ends."""
        if self.finished:
            raise UsageError("the sequence has finished")
        self.ids.append(token)
        self.sources.append(source)
        if token in self.eos:
            self.finished = "eos"
            return self._release(self._flush())
        text = self.stream.push(token) if self.stream is not None else ""
        if self.stops:
            text = self._until_stop(text)
        if self.finished is None and self.constraint is not None and self.constraint.ended(self.tokens):
            self.finished = "stop"
            text += self._release(self._flush())
        if self.finished is None and self.left == 0:
            self.finished = "length"
            text += self._release(self._flush())
        return text

    def _flush(self) -> str:
        return self.stream.flush() if self.stream is not None else ""

    def _release(self, text: str) -> str:
        """All text still held back, cut at a stop string that may show only now."""
        text, self._held = self._held + text, ""
        cuts = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def _until_stop(self, text: str) -> str:
        """Text up to a stop string, holding back an ending that may become one."""
        text, self._held = self._held + text, ""
        cuts = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if cuts:
            self.finished = "stop"
            return text[: min(cuts)]
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        if keep:
            text, self._held = text[:-keep], text[-keep:]
        return text
