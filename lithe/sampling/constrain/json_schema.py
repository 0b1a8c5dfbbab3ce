"""Let the text be JSON that a schema describes; keywords that cannot be enforced are refused.

Through llguidance, behind a reading of the schema that refuses or makes exact what the library takes too loosely. Properties
come in the schema's order. A `\\u` escape is never written: it would let a name stand for another.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.sampling.guidance import SPACES, Guided, json_grammar
from lithe.sampling.schema import enforceable

CARD = Card(paper="Generating Structured Outputs from Language Models: Benchmark and Studies", row=99,
            promises=("subset", "valid"))
TAKES_TEXT, TEXT = True, 'a JSON Schema, such as {"type": "object"}'
EXAMPLES = (
    ('{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}',
     ('{"a":1}', '{"a":-20}'), ("{}", '{"a":"x"}', '{"a":1,"b":2}', '{"a":1} x')),
    ('{"enum":["red","green",3]}', ('"red"', "3"), ('"blue"', "33", "red")),
)
REFUSED = ("{", "[]", '{"type":"strnig"}', '{"type":"array","uniqueItems":true}', '{"type":"string","pattern":"(?=a)"}')


@dataclass(frozen=True, kw_only=True)
class Knobs:
    spaces: str = knob("none", "white space: none, single (after commas and colons), or any", choices=tuple(SPACES))


class Method:
    def __init__(self, knobs: Knobs, tokenizer):
        self.spaces, self.tokenizer = knobs.spaces, tokenizer

    def compile(self, text):
        return Guided("the schema", json_grammar(enforceable(text), self.spaces), self.tokenizer)
