"""Low-rank pairs are healed: the next token, the dense model's states behind each block, and products near its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration
from lithe.compress.pairs import factored
from lithe.model.decoder import ALL, NONE, Decoder
from lithe.model.linear import Factored
from lithe.train.batches import IGNORED, Batch

CARD = Card(paper="PELA: Learning Parameter-Efficient Models with Low-Rank Approximation", row=102,
            needs=("pairs",),
            promises=("zero_at_start", "touches_only"), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    steps: int = knob(400, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate", low=0)
    feature: float = knob(0.1, "weight of the mean squared distance of states behind a block to the dense model's", low=0)
    norm: float = knob(1.0, "weight of (largest entry of |B A - W| - eps)^2, the mean over layers", low=0)
    eps: float = knob(1e-3, "how far entries may be off", low=0)
    each: int = knob(4, "layers whose entries are looked at in a step, in turn; 0: all", low=0)


class Method:
    """Guo et al. 2024, sections 3.2 and 3.3, with the language model's loss for the task's; all but the pairs is frozen."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.dense: Decoder | None = None
        self.pairs: list[tuple[Factored, Tensor]] = []

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        found = factored(model)
        self.dense = dense
        self.pairs = [(pair, dense.get_parameter(f"{site}.weight").detach()) for site, pair in found.items()]
        return [weight for pair in found.values() for weight in pair.parameters()]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The three terms, summed over the tokens that count."""
        ids_BT, targets_BT = batch["ids_BT"], batch["targets_BT"]
        assert self.dense is not None
        taps = range(len(self.dense.layers)) if self.knobs.feature else ()
        found = model(ids_BT, taps=taps, logits=ALL)
        counted = (targets_BT != IGNORED).sum()
        total = F.cross_entropy(found.scores.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
        if taps:
            with torch.no_grad():
                wanted = self.dense(ids_BT, taps=taps, logits=NONE).taps
            off = torch.stack([F.mse_loss(found.taps[layer], wanted[layer]) for layer in taps])
            total = total + self.knobs.feature * counted * off.mean()
        if self.knobs.norm:
            total = total + self.knobs.norm * counted * self.perturbed(int(batch["step"]))
        return total, counted

    def perturbed(self, step: int) -> Tensor:
        """The mean over this step's layers of (max |B A - W| - eps)^2."""
        each = self.knobs.each or len(self.pairs)
        turn = [self.pairs[(step * each + i) % len(self.pairs)] for i in range(min(each, len(self.pairs)))]
        worst = torch.stack([(pair.weight - wanted_NK).abs().max() for pair, wanted_NK in turn])
        return (worst - self.knobs.eps).square().mean()
