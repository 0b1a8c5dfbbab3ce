"""Let the text be one of a list. Needs no library.

The texts are encoded as the tokenizer does it and joined to a trie, so that each has one way to be written; where only one
token can follow it is forced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from lithe.card import Card
from lithe.errors import UsageError
from lithe.sampling.trie import Trie

CARD = Card(paper="A trie of texts", promises=("subset", "valid"))
TAKES_TEXT, TEXT = True, 'a JSON list of texts, such as ["yes", "no"]'
EXAMPLES = (
    ('["yes", "yesterday", "no"]', ("yes", "yesterday", "no"), ("ye", "yesno", "", "maybe")),
    ('["a"]', ("a",), ("b",)),
)
REFUSED = ("yes", "[]", "[1]", '[""]')


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pass


class Method:
    def __init__(self, knobs: Knobs, tokenizer):
        self.tokenizer = tokenizer

    def compile(self, text):
        try:
            texts = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise UsageError(f"choice: no JSON list of texts: {problem}") from None
        if not isinstance(texts, list) or not texts or not all(isinstance(each, str) and each for each in texts):
            raise UsageError(f"choice: give {TEXT}, none of them empty, not {text[:80]}")
        ids = [self.tokenizer.encode(each, bos=False) for each in texts]
        if odd := [each for each, way in zip(texts, ids, strict=True) if self.tokenizer.decode(way) != each]:
            raise UsageError(f"choice: this model's tokenizer cannot write {odd[0]!r} so that it reads the same")
        return Trie(ids, self.tokenizer.vocab_size)
