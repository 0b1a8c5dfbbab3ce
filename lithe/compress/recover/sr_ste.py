"""All weights are trained while every m neighbours keep their n largest; those that are out are drawn towards zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress import masking, thinned
from lithe.compress.calibrate import Calibration
from lithe.model.decoder import Decoder
from lithe.train.batches import Batch
from lithe.train.loss import next_token

CARD = Card(paper="Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", row=8, promises=("n_of_m",),
            trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pattern: str = knob("2:4", "entries kept of neighbours among a row's inputs")
    strength: float = knob(10.0, "lambda, of the pull on entries that are out; 0: plain straight-through; below 0 pushes")
    form: str = knob("decoupled", "the pull: times the rate, after each step, as adaptive optimizers want it; or in the "
                                  "gradient, as the paper has it for SGD with 2e-4", choices=("decoupled", "gradient"))
    steps: int = knob(1000, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate", low=0)
    sites: str = knob("*", "linear layers it is about, patterns joined by +")


class Method:
    """Zhou et al. 2021, section 3: W - rate (g(M W) + lambda (1 - M) W), the mask M chosen anew in every step."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.layers: dict[str, thinned.Thinned] = {}
        self.notes: dict[str, Any] = {}

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        masking.parts(self.knobs.pattern)
        self.layers = thinned.thin(model, self.knobs.sites)
        for layer in self.layers.values():
            layer.decay = self.knobs.strength if self.knobs.form == "gradient" else 0.0
        self._choose()
        return list(model.parameters())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the model as it is thinned by the weights of this step."""
        self._choose()
        return next_token(model, {name: batch[name] for name in ("ids_BT", "targets_BT")})

    def update(self, parts: Any, step: int, optimizers: list[Any]) -> None:
        """The pull, where it is not in the gradient: of the mask that the step had."""
        if self.knobs.form == "decoupled" and self.knobs.strength:
            for layer in self.layers.values():
                layer.shrink(optimizers[0].param_groups[0]["lr"] * self.knobs.strength)

    def finish(self, model: Decoder) -> None:
        self._choose()
        n, m = masking.parts(self.knobs.pattern)
        self.notes = {"mask_changes": round(thinned.changed(self.layers), 4),
                      "work": round(thinned.share_of_work(n / m, 0, self.steps), 4)}
        thinned.settle(model, self.layers)

    def _choose(self) -> None:
        for layer in self.layers.values():
            layer.choose(thinned.neighbours(layer.weight, self.knobs.pattern))
