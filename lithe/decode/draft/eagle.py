"""One small layer carries the target's hidden state on, token by token, and reads guesses off it.

EAGLE (Li et al., 2024), sections 3 and 4.1: a row joins the state f_t with the embedding of the token that follows, one decoder
layer makes f_{t+1} of it, the target's own output matrix the law of the token after. What the target accepts replaces guessed
states by true ones. tree=dynamic is EAGLE-2 (2024), section 4: each level goes on from its likeliest paths, and of all that was
met the likeliest nodes are verified. Such trees look at their tokens, so they are walked as chosen ones, never as drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import smooth_l1_loss

from lithe.card import Card, knob
from lithe.decode import heads as shared
from lithe.decode.heads import Ends, Join, Shape
from lithe.decode.trail import Follower, body
from lithe.ops.tree import Tree
from lithe.train import fitted
from lithe.train.teacher import FINAL, LOGITS

CARD = Card(
    paper="EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather", "tap:final"),
    emits=("det",),
    trains=True,
)
DECAY = 0.8  # weight of a step that reads guessed states, as a share of the step before
MEASURED = 5  # levels whose rates are measured


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    tree: str = knob("fixed", "rank paths that were right most often, or those that look likeliest each round (EAGLE-2)",
                     choices=("fixed", "dynamic"))
    depth: int = knob(5, "levels of the tree", low=1, high=16)
    width: int = knob(10, "dynamic: paths that each level goes on from, and guesses of each", low=1, high=64)
    nodes: int = knob(25, "tree size without its root; EAGLE-2 takes 60", low=1, high=512)
    feature: float = knob(1.0, "weight of the distance to the target's state in a fit", low=0.0)
    law: float = knob(0.1, "weight of the cross-entropy with the target's law in a fit", low=0.0)
    noise: float = knob(0.2, "width of the uniform noise put on states in a fit", low=0.0)
    roll: int = knob(1, "steps of a fit in which the layer reads its own states; 1 is EAGLE's", low=1, high=8)
    rate: float = knob(3e-5, "peak learning rate of a fit", low=0.0)


class Heads(nn.Module):
    SHAPED_BY = ()
    signals = (FINAL, LOGITS)

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends = knobs, Ends(model)
        self.join, self.body = Join(model.config.width, 2), body(model)

    def rows(self, states, ids):
        """The layer's rows: each state with the embedding of the token after it."""
        return self.join(states, self.ends.embed(ids, states))

    def roll(self, states_BTC, ids_BT, steps):
        """Step s yields the states its rows t >= s make: guesses of f_{t+1}, from f_t as guessed by the step before."""
        T = ids_BT.shape[1]
        for step in range(steps):
            pos_BT = torch.arange(step, T - 1, device=ids_BT.device).expand(len(ids_BT), -1)
            rows_BTC = self.rows(states_BTC[:, : T - 1 - step], ids_BT[:, step + 1 :])
            states_BTC = self.body(embeds=rows_BTC, pos_BT=pos_BT, logits="none").hidden
            yield states_BTC

    def guesses(self, batch):
        """At level s, from f_t and x_{t+1..t+s}: logits of x_{t+1+s}; x_{t+1} is the root."""
        ids_BT = batch["ids_BT"]
        for step, states_BTC in enumerate(self.roll(batch[FINAL], ids_BT, min(self.knobs.depth, MEASURED))):
            yield self.ends.logits(states_BTC[:, :-1]), ids_BT[:, step + 2 :]

    def loss(self, batch):
        true_BTC, total = batch[FINAL], 0.0
        given_BTC = true_BTC + (torch.rand_like(true_BTC) - 0.5) * self.knobs.noise
        for step, states_BTC in enumerate(self.roll(given_BTC, batch["ids_BT"], self.knobs.roll)):
            away = smooth_l1_loss(states_BTC, true_BTC[:, step + 1 :], reduction="sum") / states_BTC.shape[-1]
            law = shared.soft_cross_entropy(self.ends.logits(states_BTC), batch[LOGITS][:, step + 1 :])
            total = total + DECAY**step * (self.knobs.feature * away + self.knobs.law * law)
        return total, batch["ids_BT"][:, 1:].numel()


class Method:
    build = Heads

    def __init__(self, knobs: Knobs, model):
        made = fitted.load("eagle", knobs, model, Heads)
        self.knobs, self.net, self.device = knobs, made.module, model.device
        rates = list(made.rates or shared.usual_rates(1))[: knobs.depth]
        rates += [rates[-1]] * (knobs.depth - len(rates))
        self.shape = Shape(shared.likeliest(rates, knobs.nodes))
        self.follower = Follower(self.net.body, self._rows)
        self.read, self.observe = self.follower.read, self.follower.observe

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        live, f_BC = self.follower.follow(sequences, room)
        if not live:
            return trees
        grown, most = [trees[b] for b in live], [min(room[b], self.knobs.depth) for b in live]
        sprout = Sprout(self.net, self.follower.trail, grown, f_BC)
        if self.knobs.tree == "fixed":
            self.shape.fill(grown, most, lambda depth, places: shared.top(sprout.logits(places), self.shape.ranks))
            return trees
        for b, tree in zip(live, self._dynamic(grown, most, sprout), strict=True):
            trees[b] = tree
        return trees

    def _dynamic(self, trees, most, sprout):
        """Every level's best paths go on; of all nodes the best are kept (EAGLE-2). Scores: logarithms of joint probability."""
        scores, front = [[0.0] for _ in trees], [(b, 0) for b in range(len(trees))]
        for depth in range(max(most)):
            front = [(b, node) for b, node in front if depth < most[b]]
            if not front:
                break
            best_NR, token_NR = sprout.logits(front).double().log_softmax(-1).topk(min(self.knobs.width, sprout.vocab))
            below: list[list[tuple[float, int]]] = [[] for _ in trees]
            for (b, node), gains, tokens in zip(front, best_NR.tolist(), token_NR.tolist(), strict=True):
                for gain, token in zip(gains, tokens, strict=True):
                    scores[b].append(scores[b][node] + gain)
                    below[b].append((-scores[b][-1], trees[b].add(token, node)))
            front = [(b, node) for b, met in enumerate(below) for _, node in sorted(met)[: self.knobs.width]]
        return [shared.best(tree, score, self.knobs.nodes) for tree, score in zip(trees, scores, strict=True)]

    def _rows(self, sequence, start, states):
        ids = torch.tensor(sequence.ids[start + 1 : start + 1 + len(states)], device=self.device)
        return self.net.rows(states, ids)


class Sprout:
    """Guessed states of the nodes of growing trees, made a level at a time."""

    def __init__(self, net: Heads, trail, trees, f_BC):
        self.net, self.trail, self.trees = net, trail, trees
        self.states = {(b, 0): f_C for b, f_C in enumerate(f_BC)}  # the guess of what the target will hold there
        self.rows: dict = {}
        self.vocab = net.ends.vocab

    def logits(self, places):
        """Logits [N, V] of the token after each of these (tree, node), all of one level."""
        if any(place not in self.states for place in places):
            self._look(places)
        return self.net.ends.logits(torch.stack([self.states[place] for place in places]))

    def _look(self, places):
        """Run the level's rows, with the rows they stand on, behind what was committed."""
        before = torch.stack([self.states[b, self.trees[b].parents[node]] for b, node in places])
        ids_N = torch.tensor([self.trees[b].tokens[node] for b, node in places], device=before.device)
        self.rows.update(zip(places, self.net.rows(before, ids_N), strict=True))
        shown = [sorted({i for at, node in places if at == b for i in tree.path(node)}) for b, tree in enumerate(self.trees)]
        number = [{node: row for row, node in enumerate(nodes)} for nodes in shown]
        parents = [[number[b].get(tree.parents[node], -1) for node in shown[b]] for b, tree in enumerate(self.trees)]
        none = before[:0]
        rows = [torch.stack([self.rows[b, node] for node in nodes]) if nodes else none for b, nodes in enumerate(shown)]
        out_BTC = self.trail.look(rows, parents)
        self.states.update({(b, node): out_BTC[b, number[b][node]] for b, node in places})
