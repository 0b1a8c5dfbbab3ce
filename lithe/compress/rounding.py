"""Levels and scales as kernels/pack.py stores them. Axes: N outputs, K inputs, G groups, I inputs of a group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.errors import UsageError


def width(k: int, group: int) -> int:
    """Inputs that share a scale; -1 stands for all."""
    return -(-k // 32) * 32 if group == -1 else group


def grid(weight_NK: Tensor, bits: int, group: int) -> Tensor:
    """Scales [N, G] in fp16: the weight of largest size gets the lowest level, with 8 bits -127 or 127."""
    low, high = extremes(bits)
    w_NGI = by_group(weight_NK, group)
    top_NG = w_NGI.gather(-1, w_NGI.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scale_NG = (top_NG.abs() / high if bits >= 8 else top_NG / low).half()
    if not scale_NG.isfinite().all():
        raise UsageError("these weights are too large for scales in half precision, or are no numbers")
    return scale_NG


def extremes(bits: int) -> tuple[int, int]:
    """The least and greatest level."""
    if not 2 <= bits <= 8:
        raise UsageError(f"weights are rounded to 2 to 8 bits, not {bits}")
    return (-127, 127) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def by_group(weight_NK: Tensor, group: int) -> Tensor:
    """[N, G, I], the last group filled up with zeros."""
    each = width(weight_NK.shape[1], group)
    return F.pad(weight_NK, (0, -weight_NK.shape[1] % each)).view(len(weight_NK), -1, each)


def spread(scale_NG: Tensor, k: int) -> Tensor:
    """A scale for each weight [N, K]."""
    from lithe.compress.change import width_of

    return scale_NG.repeat_interleave(width_of(k, scale_NG.shape[1]), dim=1)[:, :k]


def nearest(weight_NK: Tensor, scale_NG: Tensor, bits: int) -> Tensor:
    """Levels [N, K] in int8 nearest to the weights."""
    low, high = extremes(bits)
    wide_NK = spread(scale_NG, weight_NK.shape[1]).to(weight_NK)
    return torch.where(wide_NK == 0, 0.0, weight_NK / wide_NK).round().clamp(low, high).to(torch.int8)
