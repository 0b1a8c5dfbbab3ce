"""Only norm gains, and biases where there are some, are tuned until predictions lie near the dense model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration
from lithe.model.decoder import ALL, Decoder
from lithe.model.modules import RMSNorm
from lithe.train.batches import Batch

CARD = Card(paper="Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming", row=162,
            promises=("zero_at_start", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    steps: int = knob(100, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate", low=0)


class Method:
    """Statistics tuning (Hubara et al. 2021, section 3.4) for models without running statistics: KL to the dense model."""

    after_packing = True

    def __init__(self, knobs: Knobs):
        self.steps, self.rate = knobs.steps, knobs.rate
        self.dense: Decoder | None = None

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        self.dense = dense
        gains = [module.weight for module in model.modules() if isinstance(module, RMSNorm)]
        return gains + [w for name, w in model.named_parameters() if name.endswith("bias")]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """KL(dense || model), summed over tokens."""
        assert self.dense is not None
        with torch.no_grad():
            wanted_BTV = self.dense(batch["ids_BT"], logits=ALL).scores.log_softmax(-1)
        found_BTV = model(batch["ids_BT"], logits=ALL).scores.log_softmax(-1)
        return (wanted_BTV.exp() * (wanted_BTV - found_BTV)).sum(), torch.tensor(batch["ids_BT"].numel())
