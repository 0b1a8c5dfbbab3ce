"""A small model drafts ahead while the large one verifies: neither waits for the other.

PEARL (Liu et al., 2024). Both start a round together: the target verifies what is pending, the draft guesses what would follow.
Where all that was pending is accepted, the first new guess is tested at once by the law that the target has just given, and
the rest is pending in the next round: no token of the target's own comes between, for the draft has moved on. Where something
is refused, all that was guessed ahead is thrown away, and the next round tests one token alone. So drafts are as long as the
text is easy.

The draft runs on a thread of its own. Compiled kernels take one caller at a time, so on a CPU only the rest of it overlaps.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from lithe.card import Card, knob
from lithe.decode.inner import grow
from lithe.decode.second import WAITING, Second
from lithe.model.runtime import stored
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence

CARD = Card(
    paper="Parallel Speculative Decoding with Adaptive Draft Length",
    row=109,
    promises=("same_tokens", "same_law"),
    needs=("second_model", "late"),
    emits=("chain",),
)
UNMEASURED = 4  # tokens ahead where nobody measured how much faster the draft is


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("zoo:tiny-draft", "the model that drafts: a folder or zoo:name, with the target's tokenizer")
    tokens: int = knob(0, "tokens to draft ahead; 0: as fit into a pass of the target by stored cost curves", low=0, high=64)
    post: bool = knob(True, "keep what was drafted ahead for the next round; else every round tests one token")


@dataclass
class Ahead:
    """What was guessed of one sequence: a chain that waits to be verified, and what may follow it."""

    text: Sequence  # the committed text and what is pending, as the draft reads it
    chain: Tree
    new: Tree | None = None
    tested: bool = field(default=False)  # whether the first new guess takes part in this round


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.second = knobs, Second(knobs.model, model)
        self.lanes, self.tokens = self.second.lanes, knobs.tokens or _speeds(model, self.second.model)
        self.held: dict[int, Ahead] = {}
        self.thread = ThreadPoolExecutor(1)
        self.drafting: Future | None = None

    def start(self, sequences):
        self.held.clear()

    def propose(self, sequences, room):
        """What is pending; and the draft sets out for what follows."""
        self.held = {s.number: self._ahead(s) for s in sequences}
        here = [self.held[s.number] for s in sequences]
        wanted = [min(self.tokens, self.second.reach(a.text), most + 2 - len(a.chain))
                  for a, most in zip(here, room, strict=True)]
        self.drafting = self.thread.submit(self._draft, sequences, here, wanted)
        return [_copy(a.chain) for a in here]

    def late(self, sequences, trees):
        """The target's pass is over: the first new guess, of no row in that pass, stands behind what was pending."""
        self.drafting.result()
        for s, tree in zip(sequences, trees, strict=True):
            a = self.held[s.number]
            a.tested = a.new is not None and len(a.new) > 1 and len(tree) == len(a.chain)  # the loop may have cut it
            if a.tested:
                last = len(tree) - 1
                tree.add(a.new.tokens[1], last)
                if 0 in a.new.laws:
                    tree.laws[last] = a.new.laws[0]

    def observe(self, rounds):
        for r in rounds:
            a = self.held[r.sequence.number]
            went = a.tested and len(r.walk.path) == len(a.chain) - 1 and r.walk.token == a.new.tokens[1]
            a.chain = _rest(a.new) if went and self.knobs.post else Tree.root(r.sequence.ids[-1], "chain")
            if r.sequence.finished:
                del self.held[r.sequence.number]

    def _ahead(self, sequence) -> Ahead:
        """What is pending of a sequence, or nothing where its text is not the one that was drafted for."""
        a = self.held.get(sequence.number)
        if a is None or a.chain.tokens[0] != sequence.ids[-1]:
            text = Sequence([0], limit=sequence.limit + sequence.prompt, context=self.lanes.model.config.context + 1)
            text.law, text.dice = sequence.law, sequence.dice
            a = Ahead(text, Tree.root(sequence.ids[-1], "chain"))
        a.text.ids = sequence.ids + a.chain.tokens[1:]
        a.new, a.tested = None, False
        return a

    @torch.inference_mode()
    def _draft(self, sequences, here: list[Ahead], wanted: list[int]) -> None:
        live = [a for a, want in zip(here, wanted, strict=True) if want > 0]
        if not live:
            return
        self.lanes.sync([a.text for a in live])
        if max(len(a.text.ids) - n for a, n in zip(live, self.lanes.cache.lengths, strict=True)) > WAITING:
            self.lanes.prefill()
        rows = [a.text.ids[n:] for a, n in zip(live, self.lanes.cache.lengths, strict=True)]
        for a in live:
            a.new = Tree.root(a.text.ids[-1], "chain")
        grow(self.lanes, [a.text for a in live], [a.new for a in live], [want for want in wanted if want > 0], rows,
             vocab=self.second.vocab)


def _rest(new: Tree) -> Tree:
    """A chain without its root: the first guess is the new one."""
    chain = Tree.chain(new.tokens[1], new.tokens[2:])
    chain.kind, chain.laws = "chain", {node - 1: law for node, law in new.laws.items() if node > 0}
    return chain


def _copy(chain: Tree) -> Tree:
    """The loop and the walk may add to what they are given."""
    return Tree(list(chain.tokens), list(chain.parents), chain.kind, dict(chain.laws))


def _speeds(target, draft) -> int:
    """How many passes of the draft fit into one of the target."""
    curves = [known.curves.get(model.threads) if (known := stored(model)) else None for model in (target, draft)]
    if None in curves:
        return UNMEASURED
    return max(1, min(64, round(curves[0].seconds(1) / curves[1].seconds(1))))
