"""A mask is mended without training: entries come back and others go as long as the row's expected output comes nearer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration, Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.masking import of_pattern, of_share, parts
from lithe.train.stats import Inputs

CARD = Card(paper="Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", row=148, needs=("moments",),
            promises=("meets_budget", "level_zero_is_identity", "n_of_m", "touches_only"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    cycles: int = knob(50, "most swaps of a row; 0 keeps the mask", low=0)
    threshold: float = knob(0.1, "error of a row, over a sequence, that is small enough", low=0)
    gamma: float = knob(1.0, "power of an input's variance that what comes back is divided by", low=0, high=4)
    skip_mlp: bool = knob(True, "leave the masks of the FFN as they are, as the authors' code does")
    guard: str = knob("none", "hessian: take only swaps that lower the exact squared error", choices=("none", "hessian"))


class Method:
    """Zhang et al. 2024, algorithm 1. The first mask is that of an importance beside it, else of |W| * ||x||."""

    units = ("entry",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if not level:
            return Change()
        (site,) = group.sites
        inputs, weight_NK = source.inputs(site), source.weight(site)
        by_input_NK = weight_NK.abs() * inputs.norm_K.to(weight_NK)
        score_NK = by_input_NK if source.scorer is None else source.score(group)
        pattern = "" if source.target is None else source.target.pattern
        per = "row" if source.scorer is None else getattr(source.scorer, "per", "row")
        mask_NK = of_pattern(score_NK, pattern) if pattern else of_share(score_NK, float(level), per)
        if not (self.knobs.skip_mlp and ".mlp." in site):
            m = parts(pattern)[1] if pattern else 0
            rows = Rows(weight_NK, mask_NK, by_input_NK, inputs, source.calibration, self.knobs, m)
            for _ in range(self.knobs.cycles):
                if not rows.cycle():
                    break
            mask_NK = rows.mask_NK
        return Change(weights={site: torch.where(mask_NK, weight_NK, 0.0)})


class Rows:
    """All rows of a matrix at once, each with its mask, its error and whether it still moves. Axes: N rows, K inputs."""

    def __init__(self, weight_NK: Tensor, mask_NK: Tensor, score_NK: Tensor, inputs: Inputs,
                 calibration: Calibration | None, knobs: Knobs, m: int):
        length = calibration.batches[0]["ids_BT"].shape[1] if calibration is not None else 1
        self.weight_NK, self.mask_NK, self.score_NK, self.knobs, self.m = weight_NK, mask_NK.clone(), score_NK, knobs, m
        self.part_NK = weight_NK * inputs.mean_K.to(weight_NK) * length  # what each entry gives in expectation
        spread_K = inputs.variance_K.to(weight_NK).clamp(min=1e-30) ** knobs.gamma
        self.worth_NK = self.part_NK / spread_K
        self.error_N = torch.where(self.mask_NK, 0.0, self.part_NK).sum(1)
        self.free_NK = ~self.mask_NK  # may come back
        gone = (~mask_NK).sum(1, keepdim=True)
        order = torch.where(mask_NK, score_NK, torch.inf).argsort(1).argsort(1)
        self.pool_NK = mask_NK & (order < gone)  # may go: of those kept the least, as many as are gone
        self.moves_N = torch.ones(len(weight_NK), dtype=torch.bool)
        self.moment_KK = inputs.second_moment_KK.to(weight_NK) if knobs.guard == "hessian" else None

    def cycle(self) -> bool:
        """One swap in every row that still moves; whether any was tried."""
        n, sign_N = torch.arange(len(self.weight_NK)), self.error_N.sign()
        self.moves_N &= (self.error_N.abs() > self.knobs.threshold) & self.free_NK.any(1)
        worth_NK = torch.where(self.free_NK, self.worth_NK * sign_N[:, None], -torch.inf)
        grow_N = worth_NK.argmax(1)
        may_NK = self.pool_NK & (self.part_NK * sign_N[:, None] < 0)
        if self.m:  # N:M: the one that goes is of the same neighbours, whatever its sign
            groups_K = torch.arange(self.mask_NK.shape[1]) // self.m
            may_NK = self.mask_NK & (groups_K == (grow_N // self.m)[:, None])
        go_N = torch.where(may_NK, self.score_NK, torch.inf).argmin(1)
        self.moves_N &= may_NK.any(1)
        error_N = self.error_N - self.part_NK[n, grow_N] + self.part_NK[n, go_N]
        self.moves_N &= error_N.sign() * sign_N >= 0  # a row stops before its error would change sign
        taken_N = self.moves_N & self._falls(n, grow_N, go_N)
        tried = bool(self.moves_N.any())
        self.free_NK[n[self.moves_N], grow_N[self.moves_N]] = False
        rows, grow, go = n[taken_N], grow_N[taken_N], go_N[taken_N]
        self.mask_NK[rows, grow], self.mask_NK[rows, go], self.pool_NK[rows, go] = True, False, False
        self.error_N = torch.where(taken_N, error_N, self.error_N)
        return tried

    def _falls(self, n: Tensor, grow_N: Tensor, go_N: Tensor) -> Tensor:
        """Whether the squared error with the second moments falls by a swap; always, without the guard."""
        if self.moment_KK is None:
            return torch.ones_like(n, dtype=torch.bool)
        off_NK, h_KK = torch.where(self.mask_NK, 0.0, self.weight_NK), self.moment_KK
        pull_NK = off_NK @ h_KK
        back_N, gone_N = self.weight_NK[n, grow_N], self.weight_NK[n, go_N]
        change_N = 2 * (gone_N * pull_NK[n, go_N] - back_N * pull_NK[n, grow_N]) + back_N.square() * h_KK[grow_N, grow_N]
        return change_N + gone_N.square() * h_KK[go_N, go_N] - 2 * back_N * gone_N * h_KK[grow_N, go_N] < 0
