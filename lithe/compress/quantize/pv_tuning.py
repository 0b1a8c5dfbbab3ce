"""Several weights share one code of 8 bits, which a book of 256 vectors explains; fitted further by recover=pv_tuning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.hessian import inverse_root
from lithe.model.narrow import CODES, made

CARD = Card(paper="PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression", row=33, needs=("moments",),
            promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))
QUICK = {"rounds": 3}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rounds: int = knob(20, "of k-means for each book", low=0)
    points: int = knob(16384, "vectors that a book is fitted to, at most", low=CODES)
    damping: float = knob(0.01, "added to the second moments' diagonal, as a share of its mean", low=1e-6, high=1)
    feedback: bool = knob(True, "vectors still to come make up for what was lost; false: each takes the code next to it")


class Method:
    """Where tuning begins: k-means weighed by second moments of the inputs, then codes one column of vectors after another.

    bits=2 is a code for 4 weights, bits=1 for 8, and so on. A layer has a book of its own and a scale a row. Stored, it is of
    that size; the kernels run it as bfloat16.
    """

    units = ("bits",)
    widths = (1, 2, 4, 8)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def kind(self, bits: int, group: int) -> tuple[str, int]:
        """The packed kind that holds it."""
        return "vector8", 8 // bits

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        kind, each = self.kind(int(level), 0)
        weight_NK, moment_KK = source.weight(site), source.inputs(site).second_moment_KK
        scale_N = weight_NK.square().mean(1).sqrt().half()
        scale_N = torch.where(scale_N == 0, 1.0, scale_N.to(weight_NK)).to(weight_NK)
        dice = torch.Generator().manual_seed(source.seed)
        book_CI = fitted(weight_NK / scale_N[:, None], moment_KK.diagonal().to(weight_NK), each, self.knobs, dice)
        book_CI = book_CI.half().to(weight_NK)  # as it is stored
        root_KK = inverse_root(moment_KK, self.knobs.damping) if self.knobs.feedback else torch.eye(len(moment_KK))
        codes_NG = assigned(weight_NK, scale_N, book_CI, root_KK.to(weight_NK))
        found = made(kind, weight_NK.shape[1], each, scale=scale_N.half(), book=book_CI.half(), codes=codes_NG)
        return Change(packed={site: found})


def vectors(x_NK: Tensor, each: int) -> Tensor:
    """Neighbours as vectors [N, G, I], the last filled up with zeros."""
    return torch.nn.functional.pad(x_NK, (0, -x_NK.shape[1] % each)).view(len(x_NK), -1, each)


def fitted(weight_NK: Tensor, weigh_K: Tensor, each: int, knobs: Knobs, dice: torch.Generator) -> Tensor:
    """A book [256, I] by k-means, each entry of a vector weighed by the mean square of its input."""
    points_PI = vectors(weight_NK, each).flatten(0, 1)
    weigh_PI = vectors(weigh_K.expand_as(weight_NK), each).flatten(0, 1) + 1e-12 * weigh_K.max().clamp(min=1e-30)
    picked = torch.randperm(len(points_PI), generator=dice)[: knobs.points]
    points_PI, weigh_PI = points_PI[picked], weigh_PI[picked]
    book_CI = points_PI[torch.arange(CODES) % len(points_PI)].clone()
    for _ in range(knobs.rounds):
        # sum_i h (w - c)^2, without the part that all codes share
        code_P = (weigh_PI @ book_CI.square().mT - 2 * (weigh_PI * points_PI) @ book_CI.mT).argmin(1)
        top_CI = torch.zeros_like(book_CI).index_add_(0, code_P, weigh_PI * points_PI)
        sum_CI = torch.zeros_like(book_CI).index_add_(0, code_P, weigh_PI)
        book_CI = torch.where(sum_CI > 0, top_CI / sum_CI.clamp(min=1e-30), book_CI)
    return book_CI


def assigned(weight_NK: Tensor, scale_N: Tensor, book_CI: Tensor, root_KK: Tensor) -> Tensor:
    """Codes [N, G], of least error on inputs whose inverse second moments have this upper root, chosen from left to right: what
    a vector loses, those behind it make up for."""
    left_NK, each, codes = weight_NK.clone(), book_CI.shape[1], []
    for start in range(0, weight_NK.shape[1], each):
        stop = min(start + each, weight_NK.shape[1])
        inner_II = torch.linalg.inv(root_KK[start:stop, start:stop])
        x_NI, entries_CI = left_NK[:, start:stop] / scale_N[:, None], book_CI[:, : stop - start]
        code_N = nearest(x_NI @ inner_II, entries_CI @ inner_II)
        lost_NI = (x_NI - entries_CI[code_N]) * scale_N[:, None] @ inner_II
        left_NK[:, stop:] -= lost_NI @ root_KK[start:stop, stop:]
        codes.append(code_N)
    return torch.stack(codes, dim=1)


def nearest(x_PI: Tensor, book_CI: Tensor) -> Tensor:
    """The code of the nearest entry for each vector [P]."""
    return (book_CI.square().sum(1) - 2 * x_PI @ book_CI.mT).argmin(1)
