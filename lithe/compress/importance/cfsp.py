"""FFN channels count by what flows through them and by their share of the three matrices' weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group

CARD = Card(paper="CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information", row=1,
            needs=("inputs",), promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    norm: str = knob("row", "a weight's share is of all channels in its row, or of its channel alone, as the released code has "
                            "it: then weights cancel", choices=("row", "channel"))
    weight_power: float = knob(1.0, "of a weight's share", low=0, high=4)
    input_power: float = knob(1.0, "of a channel's root mean square", low=0, high=4)
    only_down: bool = knob(False, "only down_proj counts (the paper's ablation)")


class Method:
    """x_j * sum_i (|D_ij| / D + |U_ji| / U + |G_ji| / G), x_j: root mean square of what down_proj reads (section 3.3)."""

    units = ("channel",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def score(self, group: Group, source: Source) -> Tensor:
        down = group.site("down_proj")
        rms_U = (source.inputs(down).square_K / max(1, source.inputs(down).tokens)).sqrt()
        sites = [down] if self.knobs.only_down else group.sites
        shares = [self._share(source.weight(site).mT if site != down else source.weight(site)) for site in sites]
        return torch.stack(shares).sum(0) * rms_U.to(shares[0]) ** self.knobs.input_power

    def _share(self, weight_CU: Tensor) -> Tensor:
        """The sum [U] over model dimensions of each weight's share."""
        size_CU = weight_CU.abs() ** self.knobs.weight_power
        total = size_CU.sum(1 if self.knobs.norm == "row" else 0, keepdim=True)
        return (size_CU / total.clamp(min=1e-30)).sum(0)
