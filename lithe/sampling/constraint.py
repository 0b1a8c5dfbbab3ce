"""What a text may be: a constraint says of every place which tokens may follow, and the law is taken over those alone.

What is allowed depends on the generated tokens only, so drafted and plain decoding, alone or in a batch, ask for one and the
same law. A constraint goes along a tree of guesses token by token and back. Axes: N tree nodes, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lithe import registry
from lithe.errors import LitheError, UsageError
from lithe.ops.tree import Tree

if TYPE_CHECKING:
    from lithe.model.tokenizer import Tokenizer

SHELF = "constrain"
LONGEST = 2**18  # characters of a schema, grammar or pattern


class Matcher(Protocol):
    """A place in a language of tokens. Moves are one token forward, or back."""

    def allowed(self) -> Tensor:
        """Tokens that may follow, bool [V]; never one that ends a text."""

    def push(self, token: int) -> bool:
        """Go over a token; False, and nothing is changed, where it may not follow."""

    def pop(self, many: int) -> None:
        """Go back over so many tokens."""

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as there is but one way; `allowed` holds the first of them alone."""

    def whole(self) -> bool:
        """Whether the text may end here."""


class Program(Protocol):
    """A constraint that was read and checked; every text gets a matcher of its own."""

    def start(self) -> Matcher: ...


class ConstraintError(LitheError):
    """A constraint that cannot go on, as its library gave up. sequence: whose it is, where that is known."""

    sequence: Any = None


class Constraint:
    """One text's constraint: follows what was generated, and looks ahead along trees."""

    def __init__(self, program: Program, eos: Iterable[int] = ()):
        """eos: tokens that end a text, allowed where it may end."""
        self.matcher, self.eos = program.start(), sorted(eos)
        self.held: list[int] = []  # tokens that the matcher stands behind

    def mask(self, generated: Seq[int], tree: Tree, logits_NV: Tensor) -> Tensor:
        """Logits with -inf where a token may not follow. Rows that cannot be reached, or follow the end, stay as they are."""
        self._sync(generated)
        keep_NV = torch.zeros(logits_NV.shape, dtype=torch.bool)
        keep_NV[0] = self._row(logits_NV.shape[-1])
        behind = [0]  # nodes that the matcher stands behind, from the root
        for node in _depth_first(tree, len(logits_NV)):
            up, token = tree.parents[node], tree.tokens[node]
            if not keep_NV[up, token]:
                continue  # nor is anything below it ever reached
            if (back := len(behind) - 1 - behind.index(up)) > 0:
                self.matcher.pop(back)
                del behind[-back:]
            if self.matcher.push(token):  # which an end of text is not
                behind.append(node)
                keep_NV[node] = self._row(logits_NV.shape[-1])
        self.matcher.pop(len(behind) - 1)
        keep_NV[~keep_NV.any(-1)] = True
        return logits_NV.masked_fill(~keep_NV.to(logits_NV.device), float("-inf"))

    def forced(self, generated: Seq[int]) -> list[int]:
        """The tokens that must follow what was generated."""
        self._sync(generated)
        return self.matcher.forced()

    def ended(self, generated: Seq[int]) -> bool:
        """Whether the text is whole and nothing may follow it."""
        self._sync(generated)
        return self.matcher.whole() and not self.matcher.allowed().any()

    def whole(self, generated: Seq[int]) -> bool:
        """Whether the text may end here."""
        if any(token in self.eos for token in generated):
            generated = generated[: next(i for i, token in enumerate(generated) if token in self.eos)]
        self._sync(generated)
        return self.matcher.whole()

    def _row(self, vocab: int) -> Tensor:
        """What may follow the matcher's place, ends included, bool [V]. Raises ConstraintError where that is nothing at all."""
        keep_V = torch.zeros(vocab, dtype=torch.bool)
        allowed_V = self.matcher.allowed()
        keep_V[: len(allowed_V)] = allowed_V[:vocab]
        if self.matcher.whole():
            keep_V[self.eos] = True
            return keep_V  # with nothing to follow the text has ended, and the row is never read
        if not keep_V.any():
            raise ConstraintError("the constraint leaves no token to go on with, and its text may not end here: with this "
                                  "tokenizer it cannot be met")
        return keep_V

    def _sync(self, generated: Seq[int]) -> None:
        """Bring the matcher behind these tokens, from wherever it stands."""
        common = len(self.held)
        if self.held != list(generated[:common]):
            pairs = zip(self.held, generated, strict=False)
            common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.held), len(generated)))
            self.matcher.pop(len(self.held) - common)
            del self.held[common:]
        for token in generated[common:]:
            if not self.matcher.push(token):
                raise ConstraintError(f"token {token} was generated where the constraint does not allow it")
            self.held.append(token)


def _depth_first(tree: Tree, rows: int) -> list[int]:
    """Nodes that have a row, the root left out, each right behind its parent's earlier children and what hangs on them."""
    if tree.parents[:rows] == list(range(-1, rows - 1)):
        return list(range(1, rows))
    below: list[list[int]] = [[] for _ in range(rows)]
    for node in range(1, rows):
        below[tree.parents[node]].append(node)
    order, open_ = [], below[0][::-1]
    while open_:
        node = open_.pop()
        order.append(node)
        open_ += below[node][::-1]
    return order


def compiled(tokenizer: Tokenizer | None, spec: str, text: Any = None) -> Program:
    """Read a constraint: a spec of the shelf and the text it takes, such as a schema. Raises UsageError for what cannot be."""
    made = registry.parse(spec, SHELF)
    if tokenizer is None:
        raise UsageError("this model has no tokenizer, so its text cannot be constrained")
    if text is not None and not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
    if text is not None and len(text) > LONGEST:
        raise UsageError(f"{made.entry.name}: a text of {len(text)} characters; at most {LONGEST} are read")
    if (text is None) == made.entry.module.TAKES_TEXT:
        raise UsageError(f"{made.entry.name} {'needs a text: ' + made.entry.module.TEXT if text is None else 'takes no text'}")
    return made.entry.module.Method(made.knobs, tokenizer).compile(text)


def read(line: str) -> tuple[str, str | None]:
    """A spec and its text as one line, "SPEC TEXT"; a text "@FILE" is what the file holds."""
    spec, _, text = line.strip().partition(" ")
    text = text.strip()
    if not text.startswith("@"):
        return spec, text or None
    try:
        return spec, Path(text[1:]).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"cannot read {text[1:]}: {problem}") from None
