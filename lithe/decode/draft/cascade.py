"""A small model drafts for a large one, and some draft of its own makes it quicker at that.

A draft that keeps its target's output can serve inside a draft as well as outside: the small model then says the very chain
that it would have said alone, in fewer passes (vertical cascades of Cascade Speculative Drafting, Chen et al., 2023; PPD inside
speculative decoding, Chen et al., 2024). Sampled tokens have the small model's law whatever was guessed inside, so acceptance
rules stay exact. Where no draft is named the small model decodes plainly, a token a pass: the control.

Axes: N nodes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from lithe import registry
from lithe.card import Card, knob
from lithe.decode.loop import rounds
from lithe.decode.plan import plan
from lithe.decode.second import Second
from lithe.errors import UnsupportedError, UsageError
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence

CARD = Card(
    paper="Cascade Speculative Drafting for Even Faster LLM Inference (Chen et al., 2023)",
    promises=("same_tokens", "same_law"),
    needs=("second_model",),
    emits=("chain",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("zoo:tiny-draft", "the model that drafts, with the target's tokenizer: a folder or zoo:name")
    dtype: str = knob("", "its precision, as in load; else the target's")
    draft: str = knob("", "the draft inside the draft, as name(knob=value;knob=value)")
    tokens: int = knob(6, "tokens to draft each round", low=1, high=64)


class Twin(Sequence):
    """A sequence as the small model sees it, with its law and dice: it goes on from what is committed, some tokens a time."""

    until = 0

    @classmethod
    def of(cls, sequence: Sequence, context: int) -> Twin:
        twin = cls(sequence.ids, limit=sequence.left, context=context, law=sequence.law)
        twin.dice = sequence.dice  # so that a seed repeats itself
        return twin

    def go_on(self, ids: list[int], tokens: int) -> None:
        self.ids[:], self.until, self.finished = ids, len(ids) + tokens, None

    @property
    def left(self) -> int:
        return self.until - len(self.ids)


class Told:
    """A rule that notes the law [vocab] each token of its walks was drawn from."""

    def __init__(self, rule, vocab: int):
        self.rule, self.vocab = rule, vocab
        self.laws_NV: list[Tensor] = []  # of every walk since they were last taken

    def walk(self, tree, scores_NV, dice):
        walk = self.rule.walk(tree, scores_NV, dice)
        laws_NV = scores_NV[[0, *walk.path]].double().softmax(-1)
        self.laws_NV.append(pad(laws_NV, (0, self.vocab - laws_NV.shape[-1])))
        return walk


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.second = knobs, Second(knobs.model, model, knobs.dtype)
        small = self.second.model
        if small.config.vocab > model.config.vocab:
            raise UnsupportedError(f"{knobs.model} may say tokens that the target does not have: draft with it directly")
        self.inner, self.context = _inside(small, knobs.draft), small.config.context
        self.inner.sampled = self.told = Told(self.inner.sampled, model.config.vocab)
        self.twins: dict[int, Twin] = {}  # by the sequence's number

    def start(self, sequences):
        self.twins.clear()
        if hasattr(self.inner.draft, "start"):
            self.inner.draft.start([])

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "chain") for s in sequences]
        many = [min(most, self.knobs.tokens, self.second.reach(s)) for s, most in zip(sequences, room, strict=True)]
        begun = {}
        for b, (sequence, tokens) in enumerate(zip(sequences, many, strict=True)):
            if tokens > 0:
                begun[b] = self._twin(sequence)
                begun[b].go_on(sequence.ids, tokens)
        while going := {b: twin for b, twin in begun.items() if not twin.finished}:
            for steps in rounds(self.inner, list(going.values())):
                laws, self.told.laws_NV = iter(self.told.laws_NV), []
                for b, done in zip(going, steps, strict=True):
                    drawn = None if sequences[b].law.greedy else next(laws)
                    self._add(trees[b], done.tokens, drawn)
        return trees

    def _add(self, tree: Tree, tokens: list[int], drawn) -> None:
        """Tokens the small model said, and the laws [N, V] they were drawn from, if they were."""
        for i, token in enumerate(tokens):
            if drawn is not None:
                tree.laws[len(tree) - 1] = drawn[i]
            tree.add(token, len(tree) - 1)

    def observe(self, rounds):
        for r in rounds:
            if r.sequence.finished:
                self.twins.pop(r.sequence.number, None)

    def _twin(self, sequence) -> Twin:
        """A new one where some of its text was rejected, since what a draft noted of that is void; the cache is handed on."""
        old, held = self.twins.get(sequence.number), self.inner.lanes.held
        if old is None or sequence.ids[: len(old.ids)] != old.ids:
            self.twins[sequence.number] = Twin.of(sequence, self.context)
            if old in held:
                held[held.index(old)] = self.twins[sequence.number]
        return self.twins[sequence.number]


def _inside(small, text: str):
    """The small model's plan. Raises UsageError for a draft that would not draft there, or that changes what is said."""
    if not text:
        return plan(small)
    spec = registry.parse(text.replace("(", ":").replace(";", ",").removesuffix(")"), "draft")
    made = plan(small, draft=spec.exact)
    if set(made.promises) != {"same_tokens", "same_law"}:
        raise UsageError(f"{spec.entry.name} cannot draft inside a draft: it changes what the small model says")
    if "late" in spec.entry.card.needs or any(hasattr(made.draft, verb) for verb in ("read", "join")):
        raise UsageError(f"{spec.entry.name} cannot draft inside a draft: it follows states of a text that is never taken back")
    return made
