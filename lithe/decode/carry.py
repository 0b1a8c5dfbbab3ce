"""Drafts whose small body carries the target's state on, token by token: what EAGLE and its kin share.

Axes: B sequences, N nodes, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence as Seq
from typing import Any

import torch
from torch import Tensor, nn

from lithe.decode.grow import MOST, scores
from lithe.decode.sprout import Place, Sprout, likely
from lithe.decode.trail import Follower
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence
from lithe.train.teacher import FINAL

MEASURED = 5  # levels whose rates are measured
Ask = Callable[[list[Place]], Tensor]  # logits [N, V] after these nodes of these trees


class Carried(nn.Module):
    """The weights of such a draft: a `body`, and what surrounds it."""

    body: Any
    knobs: Any

    def rows(self, states: Tensor, ids: Tensor) -> Tensor:
        """The body's rows: each state with the token that follows it."""
        raise NotImplementedError

    def logits(self, said: Tensor) -> Tensor:
        """The target's logits as the body's output foretells them."""
        raise NotImplementedError

    def state(self, said: Tensor) -> Tensor:
        """What of the body's output is carried on."""
        return said

    def fused(self, taps: Tensor) -> Tensor:
        """The state that the target's taps, side by side, amount to."""
        return taps

    def roll(self, states_BTC: Tensor, ids_BT: Tensor, steps: int) -> Iterator[Tensor]:
        """Step s yields what rows t >= s say of f_{t+1} and x_{t+2}, from f_t as guessed by the step before."""
        T = ids_BT.shape[1]
        for step in range(steps):
            pos_BT = torch.arange(step, T - 1, device=ids_BT.device).expand(len(ids_BT), -1)
            rows_BTC = self.rows(states_BTC[:, : T - 1 - step], ids_BT[:, step + 1 :])
            said_BTC = self.body(embeds=rows_BTC, pos_BT=pos_BT, logits="none").hidden
            yield said_BTC
            states_BTC = self.state(said_BTC)

    def guesses(self, batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """At level s, from f_t and x_{t+1..t+s}: logits of x_{t+1+s}; x_{t+1} is the root."""
        ids_BT = batch["ids_BT"]
        for step, said_BTC in enumerate(self.roll(batch[FINAL], ids_BT, min(self.knobs.depth, MEASURED))):
            yield self.logits(said_BTC[:, :-1]), ids_BT[:, step + 2 :]


class Carrier:
    """The draft itself: trees that go on from the likeliest paths (EAGLE-2), or that a policy shapes by its laws.

    knobs: `depth`, `width` and `nodes` of the former.
    """

    def __init__(self, knobs: Any, net: Any, device: torch.device, *taps: int | str):
        """taps: what of the target is carried on; its final states where none is named."""
        self.knobs, self.net, self.device = knobs, net, device
        self.follower = Follower(net.body, self._committed, *taps)
        self.read, self.observe = self.follower.read, self.follower.observe
        self.growing: tuple[Seq[Tree], dict[int, int], Ask] | None = None

    def propose(self, sequences: Seq[Sequence], room: Seq[int]) -> list[Tree]:
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        live, ask = self.begin(sequences, room, trees)
        most = [min(room[b], self.knobs.depth) for b in live]
        grown = self.shaped([trees[b] for b in live], most, ask)
        for b, tree in zip(live, grown, strict=True):
            trees[b] = tree
        return trees

    def shaped(self, trees: list[Tree], most: list[int], ask: Ask) -> list[Tree]:
        """Trees of at most so many levels, grown from these roots."""
        return likely(trees, most, ask, width=self.knobs.width, nodes=self.knobs.nodes)

    def reach(self, sequence: Sequence) -> int:
        return MOST if self.follower.ready(sequence) else 0

    def laws(self, sequences: Seq[Sequence], trees: Seq[Tree], wanted: Seq[list[int]]) -> list[list[Tensor]]:
        """The law [V] of the token after each wanted node; what was met of these trees is remembered while they grow."""
        if self.growing is None or self.growing[0] is not trees:
            live, ask = self.begin(sequences, list(map(len, wanted)), trees)
            self.growing = trees, {b: place for place, b in enumerate(live)}, ask
        _, place, ask = self.growing
        said = ask([(place[b], node) for b, nodes in enumerate(wanted) for node in nodes]).split(list(map(len, wanted)))
        return [list(scores(s, tree, nodes, logits_NV).double().softmax(-1)) if nodes else []
                for s, tree, nodes, logits_NV in zip(sequences, trees, wanted, said, strict=True)]

    def begin(self, sequences: Seq[Sequence], room: Seq[int], trees: Seq[Tree]) -> tuple[list[int], Ask]:
        """For trees that are only roots: the places of those that can grow, and how to ask for logits, by number among them."""
        live, roots_BC = self.follower.follow(sequences, room)
        sprout = self._sprout([trees[b] for b in live], roots_BC)
        return live, lambda places: self.net.logits(sprout(places))

    def _sprout(self, trees: list[Tree], roots_BC: Tensor | None) -> Sprout:
        """What the body says at the nodes of growing trees; a node's row joins the state guessed before it with its token."""

        def enter(places: list[Place]) -> Tensor:
            before_NC = torch.stack([sprout.said[b, trees[b].parents[node]] for b, node in places])
            return self.net.rows(self.net.state(before_NC), self._ids([trees[b].tokens[node] for b, node in places]))

        sprout = Sprout(self.follower.trail, trees, enter, roots_BC=roots_BC)
        return sprout

    def _committed(self, sequence: Sequence, start: int, states: Tensor) -> Tensor:
        return self.net.rows(self.net.fused(states), self._ids(sequence.ids[start + 1 : start + 1 + len(states)]))

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.device)
