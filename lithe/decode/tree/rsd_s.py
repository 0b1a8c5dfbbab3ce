"""Draw whole continuations that all differ, a beam of them: what is unlikely dies early.

Recursive speculative decoding with stochastic beam search, RSD-S (Jeon et al., 2024; Kool et al., 2019): a level keeps
the W prefixes with the largest Gumbel-perturbed log-probabilities, a child's noise being conditioned on the best child
having its parent's. So W sequences are drawn without replacement, and so are the siblings of every node, in the order of their
keys; which token comes next among siblings does not depend on its key, so cutting the beam by keys keeps the law. A
greedy sequence takes a plain beam search.

Axes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob

CARD = Card(
    paper="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
    row=170,
    promises=("same_tokens", "same_law"),
    needs=("tree", "gather"),
    emits=("wor",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    width: int = knob(3, "prefixes kept on each level (W)", low=1, high=64)
    depth: int = knob(5, "levels", low=1, high=64)


class Method:
    def __init__(self, knobs: Knobs):
        self.width, self.depth = knobs.width, knobs.depth

    def grow(self, tree, chance, *, depth, greedy):
        beam = [(0, 0.0, 0.0)]  # a node, its path's log-probability, its key
        for _ in range(min(depth, self.depth)):
            laws, found = (yield [node for node, _, _ in beam]), []
            for (node, log_p, key), law_V in zip(beam, laws, strict=True):
                log_V = log_p + law_V.log()
                keys_V = log_V if greedy else below(key, log_V + chance.gumbel(len(law_V)).to(log_V.device))
                best = keys_V.topk(min(self.width, int((law_V > 0).sum())))
                found += [(k, node, token, log_V[token].item())
                          for k, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
            found.sort(key=lambda child: -child[0])
            beam = [(tree.add(token, node), log_p, key) for key, node, token, log_p in found[: self.width]]


def below(key: float, noisy_V: Tensor) -> Tensor:
    """Keys [V] of the children, given that the largest of them is the parent's."""
    v_V = key - noisy_V + torch.log1p(-(noisy_V - noisy_V.max()).exp())
    return key - v_V.clamp(min=0) - torch.log1p((-v_V.abs()).exp())
