"""Units go, and the mean of what they gave moves into a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.change import Change, lanes
from lithe.compress.groups import Group, Level
from lithe.compress.masking import best
from lithe.compress.units import reader

CARD = Card(paper="Fluctuation-based Adaptive Structured Pruning for Large Language Models (FLAP)", needs=("inputs",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """The bias of the reading matrix takes W x_mean of the columns that go (An et al. 2024, section 4.3)."""

    units, scored = ("channel", "head"), True

    def __init__(self, knobs: Knobs):
        pass

    def change(self, group: Group, level: Level, source: Source) -> Change:
        kept_U = best(source.score(group), group.units if level is None else int(level))
        if len(kept_U) == group.units:
            return Change()
        site = reader(group)
        weight_NK, mean_K = source.weight(site), source.inputs(site).mean_K.clone()
        mean_K[lanes(source.model, group, kept_U, site)[1]] = 0
        bias_N, old_N = weight_NK @ mean_K.to(weight_NK), source.bias(site)
        return Change(kept=kept_U, biases={site: bias_N if old_N is None else old_N + bias_N} if torch.any(bias_N) else {})
