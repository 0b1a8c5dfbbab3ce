"""Let the text be a JSON object, whatever it holds.

Through llguidance. Strings are written without `\\u` escapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.sampling.guidance import SPACES, Guided, json_grammar

CARD = Card(paper="llguidance", promises=("subset", "valid"))
TAKES_TEXT, TEXT = False, ""
EXAMPLES = ((None, ("{}", '{"a":[1,null,{"b":"c"}]}', '{"é":true}'), ("[]", "1", '{"a"}', "{}{}", '{"a":1,}', "")),)
REFUSED = ()


@dataclass(frozen=True, kw_only=True)
class Knobs:
    spaces: str = knob("none", "white space: none, single (after commas and colons), or any", choices=tuple(SPACES))


class Method:
    def __init__(self, knobs: Knobs, tokenizer):
        self.spaces, self.tokenizer = knobs.spaces, tokenizer

    def compile(self, text):
        return Guided("a JSON object", json_grammar({"type": "object"}, self.spaces), self.tokenizer)
