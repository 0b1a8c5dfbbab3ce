"""Let the tokens of a pass share experts: a few that most want are the only ones that run."""

import math
from dataclasses import dataclass

import torch

from lithe.card import Card, knob

CARD = Card(paper="Dynamic Expert Sharing: Decoupling Memory from Parallelism in Mixture-of-Experts Diffusion LLMs", row=34,
            promises=("level_zero_is_identity",), needs=("experts",))
ZERO = {"share": 1.0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    by: str = knob("vote", "who chooses: the sum of all tokens' best scores (vote), or each token's few best (seq)",
                   choices=("vote", "seq"))
    share: float = knob(0.5, "vote: the share of a layer's experts that runs (paper: 0.15 of 256, 0.6 of 64)", low=0, high=1)
    each: int = knob(2, "seq: how many experts a token names", low=1)


class Method:
    def __init__(self, knobs, model):
        self.knobs, self.top = knobs, model.config.experts_per_token

    def among(self, p_BTE):
        """Which experts run for a sequence's rows of a pass, boolean [B, 1, E]."""
        knobs, experts = self.knobs, p_BTE.shape[-1]
        wanted = self.top if knobs.by == "vote" else min(knobs.each, self.top)
        best = p_BTE.topk(wanted, -1)
        named_BTE = torch.zeros_like(p_BTE).scatter(2, best.indices, best.values)
        if knobs.by == "seq":
            core_BE = (named_BTE > 0).any(1)
            short_B = core_BE.sum(1) < self.top  # a pass of few rows may name too few: the likeliest beside them join
            return (core_BE | (short_B[:, None] & most_of(named_BTE.sum(1) + p_BTE.sum(1) * 1e-6, self.top))).unsqueeze(1)
        return most_of(named_BTE.sum(1), max(self.top, math.ceil(knobs.share * experts))).unsqueeze(1)


def most_of(score_BE, count):
    """Boolean [B, E]: the `count` largest of each row."""
    return torch.zeros_like(score_BE, dtype=torch.bool).scatter(1, score_BE.topk(count, -1).indices, True)
