"""What makes activations hard to round is moved into the weights, half of it, by scaling each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.allocation import Plan
from lithe.compress.calibrate import Calibration, Source
from lithe.compress.change import Change
from lithe.compress.groups import Group, Level
from lithe.compress.rounding import grid, nearest
from lithe.compress.smooth import fixed, smooth
from lithe.compress.step import Target
from lithe.model.decoder import Decoder

CARD = Card(paper="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", needs=("inputs",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    strength: float = knob(0.5, "how much of it moves: 0 nothing, 1 all", low=0, high=1)
    input_bits: int = knob(0, "round inputs to so many bits of a fixed range around zero, as largest seen; 0 leaves them to "
                           "the kernels, which take 8 bits a row and 32 inputs", low=0, high=16)


class Method:
    """Xiao et al. 2023, equation 4: s_j = max|X_j|^a / max|W_j|^(1-a) behind norms; then weights to nearest."""

    units = ("bits",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def smooth(self, model: Decoder, calibration: Calibration | None, levels: Plan, target: Target) -> None:
        def find(weights, inputs, even) -> Tensor:
            top_K = torch.stack([weight_NK.abs().amax(0) for weight_NK in weights]).amax(0)
            return factors(inputs.most_K, top_K, self.knobs.strength)

        smooth(model, calibration, levels, find, places=("attn_in", "mlp_in"))

    def change(self, group: Group, level: Level, source: Source) -> Change:
        if level is None:
            return Change()
        (site,) = group.sites
        weight_NK, bits = source.weight(site), int(level)
        scale_NG = grid(weight_NK, bits, source.target.group)
        return Change(levels={site: (nearest(weight_NK, scale_NG, bits), scale_NG)},
                      ranges=fixed(source.inputs(site), site, self.knobs.input_bits))


def factors(most_K: Tensor, top_K: Tensor, strength: float) -> Tensor:
    """What each channel is divided by; 1 where nothing is read or nothing reads."""
    found_K = most_K**strength / top_K.clamp(min=1e-30) ** (1 - strength)
    return torch.where((most_K > 0) & (top_K > 0), found_K.clamp(min=1e-5), 1.0)
