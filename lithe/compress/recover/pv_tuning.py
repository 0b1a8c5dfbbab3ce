"""Packed weights are tuned to the dense model's predictions: scales and books by gradients, and in each step a few codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration
from lithe.compress.tuned import Grid, Vectors, of_layer
from lithe.model.decoder import ALL, Decoder
from lithe.model.linear import PackedLinear
from lithe.model.modules import RMSNorm
from lithe.model.packing import layers
from lithe.model.site import Site
from lithe.train.batches import Batch

CARD = Card(paper="PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression", row=33,
            promises=("zero_at_start", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    steps: int = knob(100, "of training on the calibration text", low=0)
    rate: float = knob(3e-4, "peak learning rate of scales, books and norm gains", low=0)
    code_rate: float = knob(0.5, "of the weights that codes are to come near to, as a share of their root mean square", low=0)
    most: float = knob(0.01, "share of a layer's codes that may change in a step; 0: scales and books alone", low=0, high=1)
    trust: float = knob(0.01, "most that a layer's weights may move in a step, as a share of their norm; 0: any", low=0)
    decay: float = knob(1.0, "share of a wish for other codes that is forgotten in a step; 0, with most=1,trust=0: "
                        "straight-through estimation", low=0, high=1)


class Method:
    """Malinovskii et al. 2024, algorithm 1: P steps (Adam on all that is continuous) and V steps (codes) in turn.

    V step: with the gradient at the weights as they are multiplied with, u = g / sqrt(v) (Adam without momentum, beta2 0.95)
    and W' = W - code_rate * u. The codes whose weights are furthest from W' are chosen anew, as near to W' as they can be, up
    to `most` of them and as long as the layer stays in `trust`; one at least. All others stay. Layers of floats keep their
    weights.
    """

    after_packing = True

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.dense: Decoder | None = None
        self.tuned: dict[str, Grid | Vectors] = {}
        self.changed: list[float] = []  # share of all codes, a step

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        self.dense, self.changed = dense, []
        self.tuned = {name: of_layer(found) for name, found in layers(model).items() if isinstance(found, PackedLinear)}
        for name, found in self.tuned.items():
            Site(name, model).swap(found)
        gains = [module.weight for module in model.modules() if isinstance(module, RMSNorm)]
        return [weight for found in self.tuned.values() for weight in found.parameters()] + gains

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """KL(dense || model), summed over tokens."""
        assert self.dense is not None
        with torch.no_grad():
            wanted_BTV = self.dense(batch["ids_BT"], logits=ALL).scores.log_softmax(-1)
        found_BTV = model(batch["ids_BT"], logits=ALL).scores.log_softmax(-1)
        return F.kl_div(found_BTV, wanted_BTV, log_target=True, reduction="sum"), torch.tensor(batch["ids_BT"].numel())

    def update(self, parts: Any, step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """The V step, with this step's gradients, behind the P step."""
        group, moved, codes = optimizers[0].param_groups[0], 0, 0
        for found in self.tuned.values():
            if self.knobs.most and found.made is not None:
                moved += found.choose(self.knobs, step, group["lr"] / max(group["peak"], 1e-30))
            codes, found.made = codes + found.codes.numel(), None
        self.changed.append(moved / max(1, codes))

    def state(self) -> dict[str, Tensor]:
        """Codes, and what the V steps remember, by layer."""
        return {f"{name}/{key}": value for name, found in self.tuned.items() for key, value in found.memory().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, found in self.tuned.items():
            found.remember({key: state[f"{name}/{key}"] for key in found.memory()})

    def finish(self, model: Decoder) -> None:
        """Pack what was tuned, in the kind that it had."""
        for name, found in self.tuned.items():
            Site(name, model).swap(found.packed())
