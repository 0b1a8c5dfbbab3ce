"""Let the text be one of a context-free grammar, in the Lark form that llguidance takes.

Rules are lower case, terminals upper case, `start` is the whole text; regular expressions stand between slashes.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card
from lithe.sampling.guidance import Guided, library

CARD = Card(paper="llguidance", promises=("subset", "valid"))
TAKES_TEXT, TEXT = True, 'a Lark grammar, such as start: "yes" | "no"'
EXAMPLES = (
    ('start: "a" start "b" | "c"', ("c", "acb", "aacbb"), ("acbb", "ac", "ab")),
    ('start: word ("," word)*\nword: /[ab]+/', ("ab,a", "b"), (",", "a,,b", "a,")),
)
REFUSED = ("start: other", "no rule")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pass


class Method:
    def __init__(self, knobs: Knobs, tokenizer):
        self.tokenizer = tokenizer

    def compile(self, text):
        return Guided("grammar", library().LLMatcher.grammar_from_lark(text), self.tokenizer)
