"""Units go in rounds by the error that only the best correction of the others would leave, and that correction is made.

Axes: N outputs, K inputs of the reading layer, U units, I inputs of a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.hessian import damped, inverse
from lithe.compress.units import reader

CARD = Card(paper="Týr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution Optimization", row=26,
            needs=("moments",), promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ffn_rounds: int = knob(16, "rounds in which channels go", low=1)
    head_rounds: int = knob(1, "rounds in which heads go", low=1)
    damping: float = knob(0.01, "added to the second moments' diagonal, as a share of its mean", low=1e-9, high=1)
    target: str = knob("own", "outputs to keep: of the weights on what they read now (own), or of the dense model's weights on "
                              "what the dense model reads (dense)", choices=("own", "dense"))


class Method:
    """Error of a group: tr(W_g (H^-1_gg)^-1 W_g^T) / 2; its inverse goes with it by the Schur complement; at the end the kept
    columns by least squares. The gradient is zero at each round's weights, so the first-order term is too."""

    units = ("width", "channel", "head")

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def change(self, group: Group, level: Level, source: Source) -> Change:
        count = group.units if level is None else int(level)
        if count >= group.units:
            return Change()
        site, rounds = reader(group), self.knobs.ffn_rounds if group.unit == "channel" else self.knobs.head_rounds
        moment_KK = source.inputs(site).second_moment_KK.double()
        weight_NK = source.weight(site).double()
        cross_KK = moment_KK if self.knobs.target == "own" else _cross(source, site)
        kept_U, new_NK = pruned(weight_NK, moment_KK, cross_KK, group.units, count, rounds, self.knobs.damping)
        return Change(kept=kept_U, weights={site: new_NK.to(source.weight(site))})


def pruned(weight_NK: Tensor, moment_KK: Tensor, cross_KK: Tensor, units: int, count: int, rounds: int, damping: float,
           ) -> tuple[Tensor, Tensor]:
    """The units [U] kept, ascending, and the weights [N, K] with the others at zero. cross: second moments of what outputs are
    wanted of with what is read."""
    h_KK = damped(moment_KK, damping)
    inverse_KK = inverse(moment_KK, damping)
    goal_NK = weight_NK @ (cross_KK + (h_KK - moment_KK))
    now_NK = goal_NK @ inverse_KK  # the weights themselves where cross is moment
    each = weight_NK.shape[1] // units
    alive_U = torch.ones(units, dtype=torch.bool)
    for turn in range(rounds):
        go = (units - count) * (turn + 1) // rounds - int((~alive_U).sum())
        if not go:
            continue
        error_U = torch.where(alive_U, errors(now_NK, inverse_KK, units, alive_U), torch.inf)
        gone_U = error_U.argsort(stable=True)[:go]
        p = (gone_U[:, None] * each + torch.arange(each)).flatten()
        step_PK = torch.linalg.solve(inverse_KK[p][:, p], inverse_KK[p])
        now_NK, inverse_KK = now_NK - now_NK[:, p] @ step_PK, inverse_KK - inverse_KK[:, p] @ step_PK
        alive_U[gone_U] = False
    kept_U = alive_U.nonzero().flatten()
    k = (kept_U[:, None] * each + torch.arange(each)).flatten()
    new_NK = torch.zeros_like(weight_NK)
    if len(k):
        new_NK[:, k] = torch.linalg.solve(h_KK[k][:, k], goal_NK[:, k].mT).mT
    return kept_U, new_NK


def errors(weight_NK: Tensor, inverse_KK: Tensor, units: int, alive_U: Tensor) -> Tensor:
    """Half the trace of W_g (H^-1_gg)^-1 W_g^T [U], for those still there."""
    each = weight_NK.shape[1] // units
    place_UI = torch.arange(units * each).view(units, each)
    own_UII = inverse_KK[place_UI[:, :, None], place_UI[:, None, :]]
    own_UII = torch.where(alive_U[:, None, None], own_UII, torch.eye(each, dtype=own_UII.dtype))
    w_UNI = weight_NK.view(len(weight_NK), units, each).transpose(0, 1)
    return 0.5 * (torch.linalg.solve(own_UII, w_UNI.mT) * w_UNI.mT).sum((1, 2))


def _cross(source: Source, site: str) -> Tensor:
    """Second moments of what the dense model reads there with what is read now."""
    dense_MK, now_MK = (source.rows(site, 1 << 40, dense=dense).double() for dense in (True, False))
    return dense_MK.mT @ now_MK / len(now_MK)
