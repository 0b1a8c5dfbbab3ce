"""A rank counts by its singular value, on a scale from 0 to 1 within its matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group

CARD = Card(paper="From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients", row=145)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """None."""


class Method:
    """Jaiswal et al. 2024, section 3.1: singular values less the least, over the largest less the least."""

    units = ("rank",)

    def __init__(self, knobs: Knobs):
        pass

    def score(self, group: Group, source: Source) -> Tensor:
        (site,) = group.sites
        values_R = torch.linalg.svdvals(source.weight(site).double())
        return (values_R - values_R[-1]) / (values_R[0] - values_R[-1]).clamp(min=1e-30)
