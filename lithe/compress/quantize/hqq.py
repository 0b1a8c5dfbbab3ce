"""Zero points are fitted to the weights alone, by a norm that forgives outliers. Reads no text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.calibrate import Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.rounding import width
from lithe.model.narrow import made

CARD = Card(paper="Half-Quadratic Quantization of Large Machine Learning Models",
            promises=("meets_budget", "level_zero_is_identity", "touches_only", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    norm: float = knob(0.7, "the power p of the norm", low=0.05, high=1)
    stiffness: float = knob(10.0, "beta: how much outliers must stand out at the beginning", low=1e-3)
    growth: float = knob(1.01, "of beta, a round", low=1)
    rounds: int = knob(20, "at most; it ends where the error no longer falls", low=0)


class Method:
    """Badri and Shaji 2023, section 3: W_e = shrink(W - W_r), z = mean(W_q - (W - W_e) / s), the scale as it was.

    Stored with real zero points in half precision; the kernels run it as bfloat16.
    """

    units = ("bits",)
    widths = (2, 3, 4)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def kind(self, bits: int, group: int) -> tuple[str, int]:
        """The packed kind that holds it."""
        return f"int{bits}z", group

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        weight_NK = source.weight(site)
        each = width(weight_NK.shape[1], source.target.group)
        kind, _ = self.kind(int(level), each)
        codes_NK, scale_NG, zero_NG = fitted(weight_NK, int(level), each, self.knobs)
        return Change(packed={site: made(kind, weight_NK.shape[1], each, scale=scale_NG, zero=zero_NG, codes=codes_NK)})


def fitted(weight_NK: Tensor, bits: int, each: int, knobs: Knobs) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales and zeros [N, G] in half precision."""
    n, k = weight_NK.shape
    w_NGI = F.pad(weight_NK[None], (0, -k % each), mode="replicate").view(n, -1, each)
    low_NG1, high_NG1, top = w_NGI.amin(-1, True), w_NGI.amax(-1, True), 2**bits - 1
    scale_NG1 = ((high_NG1 - low_NG1) / top).half().to(w_NGI)
    scale_NG1 = torch.where(scale_NG1 == 0, 1.0, scale_NG1)
    zero_NG1, beta = -low_NG1 / scale_NG1, knobs.stiffness
    best, least = zero_NG1, float("inf")
    for _ in range(knobs.rounds + 1):
        code_NGI = (w_NGI / scale_NG1 + zero_NG1).round().clamp(0, top)
        left_NGI = w_NGI - (code_NGI - zero_NG1) * scale_NG1
        error = float(left_NGI.abs().mean())
        if error >= least:
            break
        best, least = zero_NG1, error
        zero_NG1 = (code_NGI - (w_NGI - shrunk(left_NGI, beta, knobs.norm)) / scale_NG1).mean(-1, True)
        beta *= knobs.growth
    best = best.half().to(w_NGI)
    code_NGI = (w_NGI / scale_NG1 + best).round().clamp(0, top)
    return code_NGI.view(n, -1)[:, :k].to(torch.uint8), scale_NG1.squeeze(-1).half(), best.squeeze(-1).half()


def shrunk(x: Tensor, beta: float, norm: float) -> Tensor:
    """The generalized soft threshold, the proximal step of |x|^p."""
    size = x.abs().clamp(min=1e-12)
    return x.sign() * (size - size ** (norm - 1) / beta).clamp(min=0)
