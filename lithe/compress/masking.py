"""Masks from importances: the plain ways to let go what scores least. Axes: N outputs, K inputs, U units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import CUT_UNITS, Group, Level
from lithe.errors import UsageError


def plain(group: Group, level: Level, source: Source) -> Change:
    """What a step does that names an importance and nothing that acts on it: mask entries, or keep the best units."""
    if level is None:
        return Change()
    if group.unit in CUT_UNITS:
        return Change(kept=best(source.score(group), int(level)))
    if group.unit != "entry":
        raise UsageError(f"an importance chooses entries or units, not {group.unit}: name a method that does")
    (site,) = group.sites
    pattern = source.target.pattern if source.target is not None else ""
    if not level and not pattern:
        return Change()
    weight_NK, score_NK = source.weight(site), source.score(group)
    per = getattr(source.scorer, "per", "row")
    mask_NK = of_pattern(score_NK, pattern) if pattern else of_share(score_NK, float(level), per)
    return Change(weights={site: torch.where(mask_NK, weight_NK, 0.0)})


def best(score_U: Tensor, count: int) -> Tensor:
    """The units of highest score, ascending; of equal ones the first."""
    return score_U.argsort(descending=True, stable=True)[:count].sort().values


def of_share(score_NK: Tensor, share: float, per: str = "row") -> Tensor:
    """Boolean [N, K]: False for ceil(share * K) entries of least score of each row, or of the whole matrix (per="layer")."""
    flat = score_NK if per == "row" else score_NK.reshape(1, -1)
    out = math.ceil(share * flat.shape[1] - 1e-9)
    order = flat.argsort(dim=1, stable=True)[:, :out]
    return torch.ones_like(flat, dtype=torch.bool).scatter_(1, order, False).view_as(score_NK)


def of_pattern(score_NK: Tensor, pattern: str) -> Tensor:
    """Boolean [N, K]: True for the n entries of highest score in each m neighbours of a row; pattern is "n:m"."""
    n, m = parts(pattern)
    if score_NK.shape[1] % m:
        raise UsageError(f"rows of {score_NK.shape[1]} weights do not divide into groups of {m}")
    grouped = score_NK.reshape(len(score_NK), -1, m)
    order = grouped.argsort(dim=-1, descending=True, stable=True)[..., :n]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order, True).view_as(score_NK)


def parts(pattern: str) -> tuple[int, int]:
    """n and m of "n:m". Raises UsageError for what cannot be."""
    n, _, m = pattern.partition(":")
    if not (n.isdecimal() and m.isdecimal() and 0 < int(n) <= int(m) <= 64):
        raise UsageError(f"pattern {pattern!r} is not n:m, such as 2:4, with n at most m")
    return int(n), int(m)
