"""Method files of a user's own, good and bad, written where a test wants them: tests here must outlive any shipped method."""

HEAD = '''"""{what}."""
from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.ops.tree import Tree

CARD = Card(paper="a planted one", shelf="decode/draft", promises=("same_tokens",), emits=("det",))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    after: int = knob(5, "when it happens")


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def propose(self, sequences, room):
        return [Tree.root(s.ids[-1]) for s in sequences]

    def observe(self, rounds):
        pass
'''

# Guesses by what followed each token last; what it has learnt lives on from prompt to prompt.
FOLLOWS = HEAD.format(what="Remembers followers").replace('("same_tokens",)', '("same_tokens", "same_law")') + '''
    def __init__(self, knobs, model):
        self.knobs, self.next = knobs, {}

    def propose(self, sequences, room):
        return [Tree.chain(s.ids[-1], self.guess(s.ids[-1], min(most, self.knobs.after))) for s, most in zip(sequences, room)]

    def guess(self, token, most):
        tokens = []
        while token in self.next and len(tokens) < most:
            token = self.next[token]
            tokens.append(token)
        return tokens

    def observe(self, rounds):
        for r in rounds:
            self.next.update(zip(r.sequence.ids, r.sequence.ids[1:]))
'''

# A law that samples, so that no shipped warp need be there.
WARM = '''"""Sample from the logits as they are."""
from dataclasses import dataclass

from lithe.card import Card

CARD = Card(paper="a planted one", shelf="sampling/warp")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pass


class Method:
    stage, reads_context, samples = 1, False, True

    def __init__(self, knobs):
        pass

    def __call__(self, logits_NV, contexts):
        return logits_NV
'''

# Changes the text behind the loop's back: the next token follows another one than was emitted.
LOSSY = HEAD.format(what="Changes the text") + '''
    def propose(self, sequences, room):
        for s in sequences:
            if len(s.tokens) == self.knobs.after:
                s.ids[-1] = (s.ids[-1] + 1) % 7
        return [Tree.root(s.ids[-1]) for s in sequences]
'''

# Ends one token early: every token it gives is right.
SHORT = HEAD.format(what="Ends early") + '''
    def start(self, sequences):
        for s in sequences:
            s.limit -= 1
'''

RAISES = HEAD.format(what="Raises") + '''
    def propose(self, sequences, room):
        if len(sequences[0].tokens) == self.knobs.after and sequences[0].ids[0] == 9:
            raise ArithmeticError("planted")
        return [Tree.root(s.ids[-1]) for s in sequences]
'''

INTERRUPTS = HEAD.format(what="Presses Ctrl-C") + '''
    def propose(self, sequences, room):
        if len(sequences[0].tokens) == self.knobs.after and sequences[0].ids[0] == 9:
            raise KeyboardInterrupt
        return [Tree.root(s.ids[-1]) for s in sequences]
'''

NEEDY = HEAD.format(what="Needs what no cache can").replace('emits=("det",)', 'emits=("det",), needs=("gather",)')


def write(folder, **sources):
    """Write files NAME.py and return their paths by name."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return {name: str(folder / f"{name}.py") for name in sources}
