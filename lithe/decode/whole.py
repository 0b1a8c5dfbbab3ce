"""What replaces the whole loop: a method of shelf `search` chooses tokens itself, the loop commits and counts them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from operator import index

from torch import Tensor

from lithe.decode.plan import DecodePlan
from lithe.errors import LitheError
from lithe.ops import accept
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence


@dataclass(frozen=True)
class Move:
    """What a round gives one sequence: tokens, where each came from, and how many rows were run for them."""

    tokens: Seq[int]
    sources: Seq[str]
    nodes: int = 1


def moves(plan: DecodePlan, sequences: list[Sequence]) -> list[Move]:
    """A checked move a sequence. Raises LitheError for what is no text of this vocabulary."""
    found = plan.search.advance(sequences)
    if not isinstance(found, list) or len(found) != len(sequences) or not all(isinstance(move, Move) for move in found):
        raise LitheError(f"{plan.name} is broken: it made no list of {len(sequences)} moves")
    vocab = plan.model.config.vocab
    for move in found:
        if not move.tokens or len(move.tokens) != len(move.sources):
            raise LitheError(f"{plan.name} is broken: a move has {len(move.tokens)} tokens and {len(move.sources)} sources")
        if wrong := [token for token in move.tokens if not 0 <= index(token) < vocab]:
            raise LitheError(f"{plan.name} is broken: it chose token {wrong[0]}, which is outside the vocabulary of {vocab}")
    return found


def choose(sequence: Sequence, logits_V: Tensor) -> int:
    """The next token as plain decoding takes it from raw logits: warped, then the likeliest or a draw."""
    tree, scores_NV = Tree.root(sequence.ids[-1]), sequence.law(logits_V[None], [sequence.ids])
    if sequence.law.greedy:
        return accept.greedy(tree, scores_NV).token
    return accept.walk(tree, scores_NV, accept.follow, sequence.dice).token
