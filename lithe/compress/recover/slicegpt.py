"""The residual stream is turned to its principal axes and the least of them cut off (a closed form: nothing is trained)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress import residual
from lithe.compress.calibrate import Calibration
from lithe.model.decoder import NONE, Decoder

CARD = Card(paper="SliceGPT: Compress Large Language Models by Deleting Rows and Columns", promises=("zero_at_start",))
QUICK = {"ratio": 0.25}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ratio: float = knob(0.25, "share of the residual width that goes", low=0, high=0.95)


class Method:
    """Principal axes of the normed states that blocks read (Ashkboos et al. 2024, section 3), here one basis for all blocks."""

    steps, rate = 0, 0.0

    def __init__(self, knobs: Knobs):
        self.ratio = knobs.ratio
        self.calibration: Calibration | None = None

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        residual.check(model)
        self.calibration = calibration
        return []

    def finish(self, model: Decoder) -> Decoder:
        """The narrower model."""
        assert self.calibration is not None
        kept = residual.target(model.config.width, self.ratio)
        if kept >= model.config.width:
            return model
        _, axes_CC = torch.linalg.eigh(moments(model, self.calibration))
        return residual.narrowed(residual.turned(model, axes_CC.flip(1)), torch.arange(kept))


@torch.no_grad()
def moments(model: Decoder, calibration: Calibration) -> Tensor:
    """The sum over what all blocks read, and the head, of normed states' second moments [C, C], in float64."""
    total_CC = torch.zeros(model.config.width, model.config.width, dtype=torch.float64)
    layers = range(len(model.layers))
    for batch in calibration.batches:
        taps = model(batch["ids_BT"], taps=["embed", *layers], logits=NONE).taps
        for state_BTC in [taps["embed"], *(taps[i] for i in layers)]:
            x_MC = F.rms_norm(state_BTC.flatten(0, 1).double(), (state_BTC.shape[-1],), eps=model.config.norm_eps)
            total_CC += x_MC.mT @ x_MC
    return total_CC
