"""Units count by how much worse conditioned, on the data, the layer that reads them would be without them.

Axes: N outputs, K inputs of the reading layer, U units.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.groups import Group
from lithe.compress.units import fold, reader

CARD = Card(paper="Lightweight and Post-Training Structured Pruning for On-Device Large Lanaguage Models", row=16,
            needs=("inputs",), promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    metric: str = knob("leverage_energy", "kappa_exact: the log condition number without the unit; leverage_energy: "
                                          "its leverage times its share of the energy; energy: that share alone; random: drawn",
                       choices=("leverage_energy", "kappa_exact", "energy", "random"))
    ridge: float = knob(1e-3, "added to the Gram matrix, as a share of its mean diagonal", low=1e-12, high=1)


class Method:
    """Rows of A = D^(1/2) W^T, D the mean squared inputs: l_j = A_j (A^T A + eps)^-1 A_j^T, times |A_j|^2 / |A|^2.

    Our reading of the abstract, which names the condition number and no formula.
    """

    units = ("channel", "head")

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def score(self, group: Group, source: Source) -> Tensor:
        if self.knobs.metric == "random":
            dice = torch.Generator().manual_seed(crc32(f"{source.seed} {group.name}".encode()))
            return torch.rand(group.units, generator=dice)
        site = reader(group)
        a_KN = rows(source.weight(site), source.inputs(site).square_K / max(1, source.inputs(site).tokens))
        energy_K = a_KN.square().sum(1)
        share_U = fold(group, source, energy_K / energy_K.sum().clamp(min=1e-30))
        if self.knobs.metric == "energy":
            return share_U
        gram_NN = a_KN.mT @ a_KN
        eps = float(gram_NN.diagonal().mean()) * self.knobs.ridge + 1e-30
        if self.knobs.metric == "kappa_exact":
            return without(a_KN, group.units, eps)
        solved_KN = torch.linalg.solve(gram_NN + eps * torch.eye(len(gram_NN), dtype=a_KN.dtype), a_KN.mT).mT
        return fold(group, source, (a_KN * solved_KN).sum(1)) * share_U


def rows(weight_NK: Tensor, square_K: Tensor) -> Tensor:
    """D^(1/2) W^T [K, N] in float64."""
    return (weight_NK.double() * square_K.double().sqrt()).mT


def kappa(gram_NN: Tensor, eps: float) -> Tensor:
    """The condition number of a Gram matrix with eps on its diagonal."""
    values_N = torch.linalg.eigvalsh(gram_NN).clamp(min=0) + eps
    return values_N[-1] / values_N[0]


def without(a_KN: Tensor, units: int, eps: float) -> Tensor:
    """By how much the log condition number rises [U] when a unit goes: one decomposition a unit."""
    parts_UIN = a_KN.view(units, -1, a_KN.shape[1])
    gram_NN = a_KN.mT @ a_KN
    whole = kappa(gram_NN, eps).log()
    return torch.stack([kappa(gram_NN - part_IN.mT @ part_IN, eps).log() - whole for part_IN in parts_UIN])
