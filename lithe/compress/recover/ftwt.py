"""Every token computes only the FFN channels that a small predictor expects to matter: learned from the FFN's own answers.

Axes: M tokens, F channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration
from lithe.errors import UnsupportedError
from lithe.model.chosen import Chosen
from lithe.model.decoder import Decoder
from lithe.model.modules import FFN
from lithe.train.batches import Batch
from lithe.train.loss import next_token

CARD = Card(paper="Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction", row=117,
            promises=("zero_at_start",), trains=True)
SURE = 4.0  # logit of all channels at the start: everything is computed


@dataclass(frozen=True, kw_only=True)
class Knobs:
    tau: float = knob(0.95, "share of the FFN's mass that the channels of a token must hold", low=0.01, high=1)
    rank: int = knob(0, "of the predictor; 0: an eighth of the width", low=0)
    steps: int = knob(300, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate of what learns beside the predictors", low=0)
    predictor_rate: float = knob(3e-2, "of the predictors, which begin far from where they end", low=0)
    tune: str = knob("ffn", "what learns beside the predictors", choices=("ffn", "none"))
    joint: bool = knob(False, "the text's loss reaches the predictors too, straight through the masks")
    settle: float = knob(0.8, "part of the steps after which predictors are final and only the rest learns", low=0, high=1)


class Method:
    """Targets: the fewest channels that hold tau of |a_j| |W_down,j|; their cross-entropy beside the text's loss (Elkerdawy et
    al. 2022, section 3)."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.made: list[Chosen] = []

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        if model.config.experts or model.config.sub_norm or model.config.chosen:
            raise UnsupportedError("channels are chosen in plain FFNs alone: without experts, norms inside, or another choice")
        dice, rank, self.made = torch.Generator().manual_seed(seed), self.knobs.rank or max(1, model.config.width // 8), []
        chosen = []
        for number, block in enumerate(model.layers):
            at: Any = block
            if isinstance(at.mlp, FFN):
                made = Chosen(at.mlp, rank).to(model.dtype)
                with torch.no_grad():
                    made.choose_a.weight.copy_(torch.randn(made.choose_a.weight.shape, generator=dice, dtype=model.dtype)
                                               * model.config.width ** -0.5)
                    made.choose_b.weight.zero_()
                    made.choose_b.bias.fill_(SURE)
                at.mlp, made.joint = made, self.knobs.joint
                self.made.append(made)
                chosen.append((f"layers.{number}.mlp", rank))
        model.config = model.config.replace(chosen=tuple(chosen), family="llama")
        own = [weight for made in self.made for weight in (*made.choose_a.parameters(), *made.choose_b.parameters())]
        ffn = [weight for made in self.made for layer in (made.gate_proj, made.up_proj, made.down_proj) if layer is not None
               for weight in layer.parameters()]
        self.own, self.beside = own, ffn if self.knobs.tune == "ffn" else []
        return self.own + self.beside

    def optimizers(self, parts: Any, settings: Any) -> list[torch.optim.Optimizer]:
        """AdamW at two rates."""
        groups = [{"params": self.own, "lr": self.knobs.predictor_rate}, {"params": self.beside, "lr": self.rate}]
        made = torch.optim.AdamW([group for group in groups if group["params"]], betas=settings.betas, weight_decay=0.0)
        for group in made.param_groups:
            group["peak"] = group["lr"]
        return [made]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The text's under the predicted masks, and a token's worth of the predictors' cross-entropy."""
        settled = int(batch["step"]) >= self.knobs.settle * self.steps
        for made in self.made:
            made.watch = True
            made.joint = self.knobs.joint and not settled
        text = {name: batch[name] for name in ("ids_BT", "targets_BT")}
        total, tokens = next_token(model, text)
        for made in self.made:
            made.watch = False
        if settled and self.knobs.tune != "none":
            return total, tokens
        off = []
        for made in self.made:
            assert made.seen is not None
            logits, inner = made.seen
            target = wanted(inner, made.down_proj.weight, self.knobs.tau).to(logits)
            off.append(F.binary_cross_entropy_with_logits(logits, target))
        return total + tokens * torch.stack(off).sum(), tokens

    def finish(self, model: Decoder) -> None:
        """Nothing of the passes stays."""
        for made in self.made:
            made.seen = None


def wanted(inner_MF: Tensor, down_CF: Tensor, tau: float) -> Tensor:
    """The fewest channels that hold tau of a token's mass |a_j| |W_down,j|, boolean like `inner_MF`."""
    mass = inner_MF.detach().abs() * down_CF.detach().norm(dim=0)
    ordered, order = mass.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    needed = before < tau * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(needed).scatter(-1, order, needed)
