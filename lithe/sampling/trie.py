"""A language of finitely many token sequences, as a trie. Axes: V vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

END = -1  # the key that marks where a sequence may end


class Trie:
    """Sequences of token ids, the text being one of them; every matcher starts at the root."""

    def __init__(self, ways: Iterable[Sequence[int]], vocab: int):
        self.root: dict = {}
        self.vocab = vocab
        for way in ways:
            node = self.root
            for token in way:
                node = node.setdefault(token, {})
            node[END] = {}

    def start(self) -> Place:
        return Place(self)


class Place:
    """A node of a trie and the way to it, as `sampling.constraint.Matcher` has it."""

    def __init__(self, trie: Trie):
        self.nodes, self.vocab = [trie.root], trie.vocab

    def allowed(self) -> Tensor:
        keep_V = torch.zeros(self.vocab, dtype=torch.bool)
        keep_V[[token for token in self.nodes[-1] if token != END]] = True
        return keep_V

    def push(self, token: int) -> bool:
        if token == END or token not in self.nodes[-1]:
            return False
        self.nodes.append(self.nodes[-1][token])
        return True

    def pop(self, many: int) -> None:
        if many:
            del self.nodes[-many:]

    def forced(self) -> list[int]:
        node, found = self.nodes[-1], []
        while len(node) == 1 and END not in node:
            (token, node), = node.items()
            found.append(token)
        return found

    def whole(self) -> bool:
        return END in self.nodes[-1]
