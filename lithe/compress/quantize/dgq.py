"""Groups have whole-number scales within one real scale a row: 4 bits in the file that open up to 8-bit levels exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.allocation import Plan
from lithe.compress.calibrate import Calibration, Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.rounding import by_group, width
from lithe.compress.smooth import fixed, group_errors, smooth
from lithe.compress.step import Target
from lithe.model.decoder import Decoder
from lithe.model.narrow import made

CARD = Card(paper="Dual Grained Quantization: Efficient Fine-Grained Quantization for LLM", row=35, needs=("moments",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut"))
QUICK = {"rows": 8}
TOP, INTEGER = 15, 127  # greatest code, and greatest level of 8 bits


@dataclass(frozen=True, kw_only=True)
class Knobs:
    groups: int = knob(20, "clip ratios tried for a group", low=1)
    rows: int = knob(80, "clip ratios tried for a row", low=1)
    percentile: float = knob(99.5, "channels above this one, by their largest input, are scaled down to it; 100: none", low=50,
                             high=100)
    input_bits: int = knob(0, "round inputs to so many bits of one fixed range; 0 leaves them to the kernels, which take 8 "
                           "bits a row and 32 inputs", low=0, high=16)


class Method:
    """Zhang et al. 2023: W = s8 * (sI * (q - z)), s8 a row's, sI and z whole numbers of a group; both found by grid search,
    each group's error that of what it adds to the outputs. Kernels run what is in brackets as 8-bit levels, one scale a row."""

    units = ("bits",)
    widths = (4,)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def kind(self, bits: int, group: int) -> tuple[str, int]:
        """The packed kind that holds it."""
        return "dual4", group

    def smooth(self, model: Decoder, calibration: Calibration | None, levels: Plan, target: Target) -> None:
        if self.knobs.percentile < 100:
            find = lambda weights, inputs, even: clipped(even(inputs.most_K), self.knobs.percentile)
            smooth(model, calibration, levels, find)

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        weight_NK, inputs = source.weight(site), source.inputs(site)
        each = width(weight_NK.shape[1], source.target.group)
        found = fitted(weight_NK, inputs.second_moment_KK, each, self.knobs)
        return Change(packed={site: made("dual4", weight_NK.shape[1], each, **found)},
                      ranges=fixed(inputs, site, self.knobs.input_bits))


def clipped(most_K: Tensor, percentile: float) -> Tensor:
    """What loud channels are divided by: the excess over the percentile of all channels' largest inputs."""
    usual = torch.quantile(most_K, percentile / 100).clamp(min=1e-30)
    return (most_K / usual).clamp(min=1)


def fitted(weight_NK: Tensor, moment_KK: Tensor, each: int, knobs: Knobs) -> dict[str, Tensor]:
    """Scale [N], steps and zeros [N, G], codes [N, K]."""
    fine_NG, zero_NG = _groups(weight_NK, moment_KK, each, knobs.groups)
    top_N = weight_NK.abs().amax(1).clamp(min=1e-20)
    least_N = torch.full_like(top_N, float("inf"))
    best: tuple[Tensor, ...] = ()
    for i in range(knobs.rows):
        scale_N = (top_N * (1.02 - 0.82 * (i + 1) / knobs.rows) / INTEGER).half().to(weight_NK).clamp(min=2**-24)
        step_NG = (fine_NG / scale_N[:, None]).round().clamp(1, INTEGER)
        code_NK = _codes(weight_NK, step_NG * scale_N[:, None], zero_NG, each, step_NG)
        made_NK = _wide(step_NG, weight_NK, each) * (code_NK - _wide(zero_NG, weight_NK, each)) * scale_N[:, None]
        error_N = group_errors(made_NK - weight_NK, moment_KK, each).sum(1)
        better_N = error_N < least_N
        least_N = torch.where(better_N, error_N, least_N)
        now = (scale_N, step_NG, code_NK)
        best = now if not best else tuple(
            torch.where(better_N.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(now, best, strict=True))
    scale_N, step_NG, code_NK = best
    return {"scale": scale_N.half(), "step": step_NG.short(), "zero": zero_NG.short(), "codes": code_NK.short()}


def _groups(weight_NK: Tensor, moment_KK: Tensor, each: int, count: int) -> tuple[Tensor, Tensor]:
    """The first phase: real scale and whole zero of each group [N, G]."""
    w_NGI = by_group(weight_NK, each)
    low_NG, high_NG = w_NGI.amin(-1).clamp(max=0), w_NGI.amax(-1).clamp(min=0)
    least_NG = torch.full_like(low_NG, float("inf"))
    fine_NG, zero_NG = torch.ones_like(low_NG), torch.zeros_like(low_NG)
    for i in range(count):
        ratio = 1.02 - 0.22 * (i + 1) / count
        tried_NG = ((high_NG - low_NG) * ratio / TOP).clamp(min=1e-20)
        center_NG = (-low_NG * ratio / tried_NG).round().clamp(0, TOP)
        code_NK = _codes(weight_NK, tried_NG, center_NG, each)
        lost_NK = (code_NK - _wide(center_NG, weight_NK, each)) * _wide(tried_NG, weight_NK, each) - weight_NK
        error_NG = group_errors(lost_NK, moment_KK, each)
        better_NG = error_NG < least_NG
        least_NG, fine_NG, zero_NG = (torch.where(better_NG, a, b) for a, b in (
            (error_NG, least_NG), (tried_NG, fine_NG), (center_NG, zero_NG)))
    return fine_NG, zero_NG


def _codes(weight_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor, each: int, step_NG: Tensor | None = None) -> Tensor:
    """Nearest codes; with steps, those whose level stays within 8 bits."""
    zero_NK = _wide(zero_NG, weight_NK, each)
    code_NK = (weight_NK / _wide(scale_NG, weight_NK, each)).round() + zero_NK
    if step_NG is not None:
        room_NK = _wide((INTEGER / step_NG).floor(), weight_NK, each)
        code_NK = code_NK.clamp(zero_NK - room_NK, zero_NK + room_NK)
    return code_NK.clamp(0, TOP)


def _wide(value_NG: Tensor, weight_NK: Tensor, each: int) -> Tensor:
    return value_NG.repeat_interleave(each, dim=1)[:, : weight_NK.shape[1]]
