"""The product of two thinner matrices that is nearest on the inputs that a layer reads, not on all inputs alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.hessian import damped

CARD = Card(paper="SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
            needs=("moments",), promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    damping: float = knob(1e-3, "added to the second moments' diagonal, as a share of its mean", low=1e-9, high=1)


class Method:
    """Singular values of W S with S S^T = E[x x^T]: what is cut off is the error of the outputs (Wang et al. 2025, 3.1)."""

    units = ("rank",)

    def __init__(self, knobs: Knobs):
        self.damping = knobs.damping

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        rank, weight_NK = int(level), source.weight(site).double()
        root_KK = torch.linalg.cholesky(damped(source.inputs(site).second_moment_KK, self.damping))
        u_NR, s_R, v_RK = torch.linalg.svd(weight_NK @ root_KK, full_matrices=False)
        half_R = s_R[:rank].sqrt()
        a_RK = torch.linalg.solve_triangular(root_KK, half_R[:, None] * v_RK[:rank], upper=False, left=False)
        return Change(pairs={site: (a_RK.to(source.weight(site)), (u_NR[:, :rank] * half_R).to(source.weight(site)))})
