"""Rotary position embedding. Axes: B batch, H heads, T time, D head width, R rotated pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frequencies(dim: int, *, theta: float, kind: str = "default", factor: float = 1.0, original_context: int = 0,
                low_freq_factor: float = 1.0, high_freq_factor: float = 4.0, beta_fast: float = 32.0,
                beta_slow: float = 1.0, attention_factor: float | None = None, truncate: bool = True) -> tuple[Tensor, float]:
    """Angular steps [dim / 2] in float32 and the factor on cos and sin.

    linear: Chen et al. 2023; llama3: the Llama 3.1 model card; yarn: Peng et al. 2023, sections 3.2 to 3.4.
    """
    inv_R = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
    if kind == "default":
        return inv_R, 1.0
    if kind == "linear":
        return inv_R / factor, 1.0
    if kind == "llama3":
        wavelength_R = 2 * math.pi / inv_R
        long, short = original_context / low_freq_factor, original_context / high_freq_factor
        smooth_R = (original_context / wavelength_R - low_freq_factor) / (high_freq_factor - low_freq_factor)
        mixed_R = (1 - smooth_R) * inv_R / factor + smooth_R * inv_R
        scaled_R = torch.where(wavelength_R > long, inv_R / factor, inv_R)
        between_R = (wavelength_R <= long) & (wavelength_R >= short)
        return torch.where(between_R, mixed_R, scaled_R), 1.0
    if kind == "yarn":
        def turn(rotations: float) -> float:
            return dim * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low, high = turn(beta_fast), turn(beta_slow)
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp_R = ((torch.arange(dim // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
        if attention_factor is None:
            attention_factor = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        return inv_R / factor * ramp_R + inv_R * (1 - ramp_R), attention_factor
    raise ValueError(f"unknown rotary kind {kind!r}")


def rotate(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Rotate pairs (i, i + R) of the first 2R entries of each head; the rest passes through."""
    rotated = cos_BTD.shape[-1]
    whole = rotated == x_BHTD.shape[-1]  # no slice of all: its gradient would be a copy
    x, rest = (x_BHTD, None) if whole else (x_BHTD[..., :rotated], x_BHTD[..., rotated:])
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    x = x * cos_BTD.unsqueeze(1) + turned * sin_BTD.unsqueeze(1)
    return x if rest is None else torch.cat((x, rest), dim=-1)
