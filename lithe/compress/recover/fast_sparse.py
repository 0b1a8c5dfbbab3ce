"""Small weights go little by little while the others are trained, until so few are left that products with them are fast."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress import thinned
from lithe.compress.calibrate import Calibration
from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.train.batches import Batch
from lithe.train.loss import next_token

CARD = Card(paper="Fast Sparse ConvNets", row=111, promises=("zero_at_start",), trains=True)
QUICK = {"steps": 8, "every": 2}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ratio: float = knob(0.9, "share of the weights that is zero in the end", low=0, high=0.99)
    steps: int = knob(2000, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate", low=0)
    start: float = knob(0.1, "part of the steps after which weights begin to go", low=0, high=1)
    end: float = knob(0.75, "part of the steps after which none goes any more", low=0, high=1)
    every: int = knob(100, "steps from one mask to the next", low=1)
    block: int = knob(1, "neighbouring outputs that go together", choices=(1, 2, 4))
    late: float = knob(0.0, "how much larger the share is in the last block than in the first", low=0, high=0.5)
    sites: str = knob("*", "linear layers it is about, patterns joined by +; embeddings and the head stay whole")


class Method:
    """Elsen et al. 2020: gradual magnitude pruning as Zhu and Gupta's. What is left runs as strips (kernels/sparse.py)."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.layers: dict[str, thinned.Thinned] = {}
        self.blocks = 1
        if knobs.start > knobs.end:
            raise UsageError(f"start={knobs.start} lies after end={knobs.end}")

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        self.layers, self.blocks = thinned.thin(model, self.knobs.sites, straight=False), len(model.layers)
        return list(model.parameters())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the model with this step's masks."""
        step = int(batch["step"])
        if step % self.knobs.every == 0 or step == round(self.knobs.end * self.steps):
            self.choose(step)
        return next_token(model, {name: batch[name] for name in ("ids_BT", "targets_BT")})

    def choose(self, step: int) -> None:
        """Masks by size within each layer, in blocks of neighbouring outputs. What is out keeps its value and may come back."""
        grown = growth(step, round(self.knobs.start * self.steps), round(self.knobs.end * self.steps))
        for name, layer in self.layers.items():
            place = (int(name.split(".")[1]) + 0.5) / self.blocks - 0.5  # from -0.5 in the first block to 0.5 in the last
            share = min(0.99, max(0.0, self.knobs.ratio + self.knobs.late * place)) * grown
            layer.choose(largest(layer.weight.detach(), share, self.knobs.block))

    def finish(self, model: Decoder) -> None:
        self.choose(self.steps)
        thinned.settle(model, self.layers)


def growth(step: int, start: int, end: int) -> float:
    """How much of the final share is out at a step: 1 - (1 - progress)^3."""
    progress = 1.0 if step >= end else max(0.0, (step - start) / max(1, end - start))
    return 1 - (1 - progress) ** 3


def largest(weight_NK: Tensor, share: float, block: int) -> Tensor:
    """The mask without this share of a matrix, those of least summed size over blocks of outputs; outputs behind the last whole
    block are alone."""
    n = len(weight_NK) // block * block
    size_NK = weight_NK.abs()
    size_NK[:n] = size_NK[:n].view(-1, block, size_NK.shape[1]).mean(1).repeat_interleave(block, dim=0)
    out = math.ceil(share * size_NK.numel() - 1e-9)
    order = size_NK.T.reshape(-1).argsort(stable=True)[:out]  # by inputs, so that a block's outputs follow one another
    mask = torch.ones(size_NK.numel(), dtype=torch.bool).index_fill_(0, order, False)
    return mask.view(size_NK.T.shape).T.contiguous()
