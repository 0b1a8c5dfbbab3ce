"""Let the text be one that a regular expression matches as a whole.

The expression is read as Rust's `regex` does: no look-around, no back-references. Through llguidance (Moskal et al.).
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.sampling.guidance import Guided, library

CARD = Card(paper="llguidance", promises=("subset", "valid"))
TAKES_TEXT, TEXT = True, "a regular expression, such as [0-9]{4}"
# (text, texts inside, texts outside): what the contract tries
EXAMPLES = (
    ("[0-9]{2,4}", ("12", "1234"), ("1", "12345", "a", "")),
    ("(ab)+c?", ("ab", "ababc"), ("a", "c", "abca")),
)
REFUSED = ("(a", "a(?=b)")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pass


class Method:
    def __init__(self, knobs: Knobs, tokenizer):
        self.tokenizer = tokenizer

    def compile(self, text):
        return Guided("regex", library().LLMatcher.grammar_from_regex(text), self.tokenizer)
