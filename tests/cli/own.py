"""A user's own method, as the tests of the command line need one."""

SOURCE = '''"""Guess that the last word is said again."""

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops.tree import Tree

CARD = Card(paper="Mine", promises=("same_tokens",), emits=("det",), shelf="decode/draft")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    tokens: int = knob(2, "how often to say it", low=1, high=8)
    rate: float = knob(0.5, "a share", low=0.0, high=1.0)
    loud: bool = knob(False, "whether to shout")
    mode: str = knob("one", "which of them", choices=("one", "two"))
    most: int | None = knob(None, "a bound, if there is one", low=1)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def propose(self, sequences, room):
        return [Tree.chain(s.ids[-1], [s.ids[-1]] * min(self.knobs.tokens, most)) for s, most in zip(sequences, room)]

    def observe(self, rounds):
        pass
'''
