"""Units go, and those that stay are each scaled so that the layer that reads them gives what it gave.

Axes: N outputs, K inputs of the reading layer, U units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change, lanes
from lithe.compress.groups import Group, Level
from lithe.compress.masking import best
from lithe.compress.units import reader

CARD = Card(paper="Lightweight and Post-Training Structured Pruning for On-Device Large Lanaguage Models", row=16,
            needs=("moments",), promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    tune: str = knob("mask", "mask: a factor for each unit; none: as they are; full: all weights by least squares",
                     choices=("mask", "none", "full"))
    ridge: float = knob(1e-3, "pull of the factors towards 1, as a share of the mean diagonal", low=1e-12, high=1)
    most: float = knob(10.0, "factors beyond it are not believed: all stay at 1", low=1)


class Method:
    """min_m E |W x - W_kept (m x_kept)|^2 from second moments alone; m is folded into the columns of W."""

    units, scored = ("width", "channel", "head"), True

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def change(self, group: Group, level: Level, source: Source) -> Change:
        kept_U = best(source.score(group), group.units if level is None else int(level))
        if len(kept_U) in (0, group.units) or self.knobs.tune == "none":
            return Change(kept=kept_U) if len(kept_U) < group.units else Change()
        site = reader(group)
        weight_NK, bias_N = source.weight(site).double(), source.bias(site)
        kept_K = lanes(source.model, group, kept_U, site)[1]
        inputs = source.inputs(site)
        moment_KK = inputs.second_moment_KK.double()
        new_NK = torch.zeros_like(weight_NK)
        if self.knobs.tune == "full":
            new_NK[:, kept_K] = refit(weight_NK, moment_KK, kept_K, self.knobs.ridge)
            return Change(kept=kept_U, weights={site: new_NK.to(source.weight(site))})
        if bias_N is not None:  # the bias is one more unit, whose input is always 1
            weight_NK = torch.cat((weight_NK, bias_N.double()[:, None]), 1)
            mean_1K = inputs.mean_K.double()[None]
            last_11 = torch.ones(1, 1, dtype=torch.float64)
            moment_KK = torch.cat((torch.cat((moment_KK, mean_1K.mT), 1), torch.cat((mean_1K, last_11), 1)), 0)
            kept_K = torch.cat((kept_K, torch.tensor([weight_NK.shape[1] - 1])))
        each = (len(kept_K) - (bias_N is not None)) // len(kept_U)
        owner_K = torch.arange(len(kept_K)) // each  # the bias is a unit of its own behind the others
        factor_K = factors(weight_NK, moment_KK, kept_K, owner_K, self.knobs.ridge, self.knobs.most)[owner_K]
        scaled_NK = weight_NK[:, kept_K] * factor_K
        if bias_N is None:
            new_NK[:, kept_K] = scaled_NK
            return Change(kept=kept_U, weights={site: new_NK.to(source.weight(site))})
        new_NK[:, kept_K[:-1]] = scaled_NK[:, :-1]
        return Change(kept=kept_U, weights={site: new_NK.to(source.weight(site))}, biases={site: scaled_NK[:, -1].to(bias_N)})


def factors(weight_NK: Tensor, moment_KK: Tensor, kept_K: Tensor, owner_K: Tensor, ridge: float, most: float) -> Tensor:
    """The factor [U] of each kept unit by the normal equations; owner_K: the unit of each kept input.

    The ridge pulls towards 1, so the error is never above that of factors of 1.
    """
    joint_KK = (weight_NK.mT @ weight_NK) * moment_KK
    count = int(owner_K.max()) + 1
    sums_KU = torch.nn.functional.one_hot(owner_K, count).to(joint_KK)
    a_UU = sums_KU.mT @ joint_KK[kept_K][:, kept_K] @ sums_KU
    b_U = sums_KU.mT @ joint_KK[kept_K].sum(1)
    pull = ridge * float(a_UU.diagonal().mean()) + 1e-30
    found_U = torch.linalg.solve(a_UU + pull * torch.eye(count, dtype=a_UU.dtype), b_U + pull)
    believed = bool(torch.isfinite(found_U).all()) and float(found_U.abs().max()) <= most
    return found_U if believed else torch.ones_like(found_U)


def refit(weight_NK: Tensor, moment_KK: Tensor, kept_K: Tensor, ridge: float) -> Tensor:
    """All kept columns by least squares: as many unknowns as weights."""
    own_KK = moment_KK[kept_K][:, kept_K]
    damped_KK = own_KK + ridge * float(own_KK.diagonal().mean()) * torch.eye(len(kept_K), dtype=own_KK.dtype)
    pull_KK = damped_KK - own_KK
    return torch.linalg.solve(damped_KK, (weight_NK @ moment_KK[:, kept_K] + weight_NK[:, kept_K] @ pull_KK).mT).mT
