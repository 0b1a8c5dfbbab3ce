"""Move the model's law a step towards the draft's before it judges the draft. Changes the output.

RAPID (Chen et al., 2025). A draft that reads only what matters of a long text may know better than the model that reads it
all. From the logits, eta (p - q) is taken where the draft's q is not far below its largest: a step of the divergence from
draft to target. The shifted law p' tests the draft, x being kept with probability min(1, p'(x)/q(x)); after a rejection the
token comes from the normalised max(p - q, p - p', 0), after none from p. `eta=0` is the exact rule for chains.

Greedy form, ours: a drafted token is kept where it has the largest shifted logit, else the model's own is emitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from lithe.card import Card, knob
from lithe.ops import accept

CARD = Card(
    paper="Long-Context Inference with Retrieval-Augmented Speculative Decoding",
    row=105,
    takes=("chain",),
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    eta: float = knob(10.0, "size of the step; 20 to 50 for a draft larger than the target, 0: lossless", low=0.0, high=1000.0)
    alpha: float = knob(0.1, "tokens below this share of the draft's largest probability are left alone", low=0.0, high=1.0)
    greedy: bool = knob(False, "be the rule for greedy requests instead of sampled ones; the draft must keep its laws")


class Method:
    def __init__(self, knobs: Knobs):
        self.greedy = knobs.greedy
        rule = accept.shifted_greedy if knobs.greedy else accept.shifted_rejection
        self.rule = partial(rule, eta=knobs.eta, alpha=knobs.alpha)

    def walk(self, tree, scores_NV, dice):
        return accept.walk_scores(tree, scores_NV, self.rule, dice)
