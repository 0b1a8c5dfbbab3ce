"""Copy the text to be edited, word for word, and find back into it after each change.

Input-guided aggressive decoding (Ge et al., 2022). In editing most of the source returns unchanged: the draft is the source
from a pointer on. Where the model writes something else the pointer is lost, until the last tokens, one to three, stand
exactly once in the source; the draft goes on behind them. What is ambiguous is not guessed. Output is that of greedy
decoding; no training.

The source is the prompt, a marked part of it, or a file.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from lithe.card import Card, knob
from lithe.errors import UnsupportedError, UsageError
from lithe.model import corpus
from lithe.ops.tree import Tree

CARD = Card(
    paper="Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
    row=55,
    promises=("same_tokens", "same_law"),
    emits=("det",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    after: str = knob("", "the source begins after the first place where the prompt says this; empty: at its beginning")
    before: str = knob("", "and ends before the next place where it says this; empty: at its end")
    file: str = knob("", "a text, .jsonl or .npy file that is the source instead")
    tokens: int = knob(64, "most tokens to copy; the paper copies all that is left", low=1, high=4096)
    ngram: int = knob(3, "most tokens that lead back into the source", low=0, high=32)
    ambiguous: bool = knob(False, "the control: go on behind the first of several places")


@dataclass
class Source:
    """The text to copy, where its n-grams end, and the pointer: None while it is lost."""

    ids: list[int]
    ends: dict[tuple[int, ...], list[int]]
    read: int  # tokens of the sequence that the pointer knows of
    pointer: int | None = 0
    drafted: list[int] = field(default_factory=list)


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.tokenizer, self.vocab = knobs, model.tokenizer, model.config.vocab
        if self.tokenizer is None and (knobs.after or knobs.before):
            raise UnsupportedError("this model has no tokenizer, so its prompts hold no marks: leave out after and before")
        self.file = corpus.load(knobs.file, self.tokenizer).ids.tolist() if knobs.file else None
        if self.file and max(self.file) >= self.vocab:
            raise UsageError(f"{knobs.file} holds token {max(self.file)}, outside this model's vocabulary of {self.vocab}")
        self.sources: dict[int, Source] = {}

    def start(self, sequences):
        self.sources.clear()

    def propose(self, sequences, room):
        return [Tree.chain(s.ids[-1], self._copy(s, most)) for s, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        for r in rounds:
            if r.sequence.finished:
                self.sources.pop(r.sequence.number, None)

    def _copy(self, sequence, most: int) -> list[int]:
        """What the source says next, nothing where the pointer is lost."""
        if sequence.number not in self.sources:
            ids = self.span(sequence.ids[: sequence.prompt]) if self.file is None else self.file
            self.sources[sequence.number] = Source(ids, self._ends(ids), sequence.prompt)
        source = self.sources[sequence.number]
        self._follow(source, sequence)
        if source.pointer is None:
            return []
        return source.ids[source.pointer : source.pointer + min(most, self.knobs.tokens)]

    def _follow(self, source: Source, sequence) -> None:
        """Move the pointer along what was written since; where that is not the source, look for the way back."""
        new = sequence.ids[source.read :]
        source.read = len(sequence.ids)
        if source.pointer is not None and source.ids[source.pointer : source.pointer + len(new)] == new:
            source.pointer += len(new)
            return
        source.pointer = None
        for n in range(1, min(self.knobs.ngram, len(sequence.tokens)) + 1):
            places = source.ends.get(tuple(sequence.ids[-n:]), [])
            if len(places) == 1 or (places and self.knobs.ambiguous):
                source.pointer = places[0]
                return

    def _ends(self, ids: list[int]) -> dict[tuple[int, ...], list[int]]:
        ends: dict[tuple[int, ...], list[int]] = {}
        for n in range(1, self.knobs.ngram + 1):
            for end in range(n, len(ids) + 1):
                ends.setdefault(tuple(ids[end - n : end]), []).append(end)
        return ends

    def span(self, prompt: list[int]) -> list[int]:
        """The part of a prompt between the marks. Raises UsageError where a mark is not there."""
        if not (self.knobs.after or self.knobs.before):
            return prompt
        text = self.tokenizer.decode(prompt, special=True)
        first, last = 0, len(text)
        for mark in filter(None, (self.knobs.after, self.knobs.before)):
            at = text.find(mark, first)
            if at < 0:
                raise UsageError(f"the prompt does not say {mark!r}, which marks the text to copy")
            first, last = (at + len(mark), last) if mark is self.knobs.after and not first else (first, at)
        at = lambda letters: bisect_right(range(len(prompt) + 1), letters, key=lambda n: self._letters(prompt[:n])) - 1
        return prompt[at(first) : at(last)]

    def _letters(self, ids: list[int]) -> int:
        return len(self.tokenizer.decode(ids, special=True))
