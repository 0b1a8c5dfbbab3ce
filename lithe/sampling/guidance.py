"""Grammars through llguidance: its tokenizer, made once for each of ours, and a matcher that goes forth and back.

Axes: V vocabulary.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lithe.errors import UnsupportedError, UsageError
from lithe.sampling.constraint import ConstraintError

if TYPE_CHECKING:
    from lithe.model.tokenizer import Tokenizer

_made: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
# White space in JSON: between items, after keys, and whether any may stand anywhere.
SPACES = {"none": (",", ":", False), "single": (", ", ": ", False), "any": (",", ":", True)}

TOO_MUCH = ("ParserTooComplex", "LexerTooComplex")  # why a matcher stopped at one of the library's own limits


def library() -> Any:
    """The library. Raises UnsupportedError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise UnsupportedError("constraints by grammar need the library llguidance: pip install 'lithe[json]'") from None
    return llguidance


def vocabulary(tokenizer: Tokenizer) -> Any:
    """The library's own view of a tokenizer; making it takes up to a second for a large vocabulary."""
    if tokenizer not in _made:
        ends = sorted(tokenizer.eos_ids) or [tokenizer.vocab_size - 1]  # it wants one; ours decide what ends a text
        try:
            _made[tokenizer] = library().LLTokenizer(tokenizer.backend.to_str(), n_vocab=tokenizer.vocab_size, eos_token=ends)
        except (ValueError, RuntimeError) as problem:
            raise UnsupportedError(f"llguidance cannot use this model's tokenizer: {problem}") from None
    return _made[tokenizer]


def json_grammar(schema: dict[str, Any], spaces: str) -> str:
    """A grammar of the JSON that a schema describes. No `\\u` escapes: with them a name could be written in two ways."""
    item, key, free = SPACES[spaces]
    options = {"item_separator": item, "key_separator": key, "whitespace_flexible": free, "lenient": False,
               "coerce_one_of": False, "json_allowed_escapes": 'nrbtf\\"'}
    return library().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)


class Guided:
    """A grammar that llguidance took. Raises UsageError with its word on what is wrong."""

    def __init__(self, name: str, grammar: str, tokenizer: Tokenizer):
        self.vocabulary, self.name = vocabulary(tokenizer), name
        self.ends = sorted(tokenizer.eos_ids)
        self.first = library().LLMatcher(self.vocabulary, grammar, log_level=0)
        if self.first.is_error():
            raise UsageError(f"{name}: {said(self.first)}")
        if warnings := self.first.get_grammar_warnings():
            raise UsageError(f"{name}: {warnings[0]}")
        begun = self.first.deep_copy()
        begun.compute_bitmask()
        if begun.stop_reason() in TOO_MUCH:  # its limits are met where it is used, not where it is read
            raise UsageError(f"{name} is too much for llguidance: {said(begun)}")

    def start(self) -> Place:
        return Place(self.first.deep_copy(), self.ends, self.vocabulary.vocab_size)


class Place:
    """A matcher of the library's, as `sampling.constraint.Matcher` has it."""

    def __init__(self, matcher: Any, ends: list[int], vocab: int):
        self.matcher, self.ends, self.vocab = matcher, ends, vocab
        self._known: Tensor | None = None  # what may follow here, once asked for

    def allowed(self) -> Tensor:
        if self._known is None:
            bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
            self._alive()
            self._known = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self.vocab].astype(bool))
            self._known[self.ends] = False
        return self._known

    def push(self, token: int) -> bool:
        if token in self.ends or token >= self.vocab or self.matcher.try_consume_tokens([token]) != 1:
            self._alive()
            return False
        self._known = None
        return True

    def pop(self, many: int) -> None:
        if many:
            if not self.matcher.rollback(many):
                raise ConstraintError(f"llguidance cannot go back by {many}: {said(self.matcher)}")
            self._known = None

    def forced(self) -> list[int]:
        return [] if self.matcher.is_stopped() else list(self.matcher.compute_ff_tokens())

    def whole(self) -> bool:
        return bool(self.matcher.is_accepting())

    def _alive(self) -> None:
        if self.matcher.is_error():
            raise ConstraintError(f"llguidance gave up: {said(self.matcher)}")


def said(matcher: Any) -> str:
    """The library's message, on one line and without its state."""
    return " ".join(str(matcher.get_error()).partition("<state>")[0].split())[:600]
