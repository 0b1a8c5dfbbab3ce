"""Entries that a pattern of n in m leaves out fade away instead of going at once, or the pattern tightens in frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress import masking, thinned
from lithe.compress.calibrate import Calibration
from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.train.batches import Batch
from lithe.train.loss import next_token

CARD = Card(paper="Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers", row=36,
            promises=("zero_at_start", "n_of_m"), trains=True)
QUICK = {"steps": 10, "pattern": "2:4"}
FRAMES = 4  # of the geometric schedule


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pattern: str = knob("1:8", "entries kept of neighbours")
    schedule: str = knob("exponential", "how what is out fades (exponential, linear), or how the pattern tightens",
                         choices=("exponential", "linear", "stepwise", "geometric"))
    tau: float = knob(0.0, "of the fading, a step; 0: so that 0.05 is left after 0.7 of its phase", low=0)
    steps: int = knob(1000, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate", low=0)
    dense: float = knob(0.1, "part of the steps that comes first, without a mask", low=0, high=0.9)
    final: float = knob(0.2, "part of the steps that comes last, with the mask alone", low=0, high=0.9)
    sites: str = knob("mlp.*", "linear layers it is about, patterns joined by +")
    axis: str = knob("input", "whose neighbours: a row's inputs, or outputs", choices=("input", "output"))
    watch: bool = knob(False, "measure how noisy the gradients of entries are that are out")


class Method:
    """Bambhaniya et al. 2024, section 4: W (M + beta (1 - M)) with a straight gradient; beta falls (mask decay), or stays 0
    while the pattern goes from loose to tight (structure decay)."""

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.layers: dict[str, thinned.Thinned] = {}
        self.notes: dict[str, Any] = {}
        self.before: dict[str, Tensor] = {}
        self.noise = [0.0, 0.0]
        if knobs.dense + knobs.final >= 1:
            raise UsageError(f"dense={knobs.dense} and final={knobs.final} leave no steps for what lies between them")

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        self.layers = thinned.thin(model, self.knobs.sites)
        sides = [layer.in_features if self.knobs.axis == "input" else layer.out_features for layer in self.layers.values()]
        self.patterns = frames(self.knobs.pattern, self.knobs.schedule, math.gcd(*sides))
        return list(model.parameters())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the model as this step reads its weights."""
        pattern, beta = self.at(int(batch["step"]))
        for layer in self.layers.values():
            layer.beta = beta
            if pattern:
                layer.choose(thinned.neighbours(layer.weight, pattern, self.knobs.axis))
        return next_token(model, {name: batch[name] for name in ("ids_BT", "targets_BT")})

    def at(self, step: int) -> tuple[str, float]:
        """The pattern of a step, "" for none yet, and beta."""
        knobs, start = self.knobs, round(self.knobs.dense * self.steps)
        phase = self.steps - start - round(knobs.final * self.steps)
        since = step - start
        if since < 0:
            return "", 1.0
        if since >= phase:
            return knobs.pattern, 0.0
        if knobs.schedule in ("stepwise", "geometric"):
            return self.patterns[since * len(self.patterns) // phase], 0.0
        if knobs.schedule == "linear":
            return knobs.pattern, max(0.0, 1 - (knobs.tau or 0.95 / (0.7 * phase)) * since)
        return knobs.pattern, math.exp(-(knobs.tau or math.log(20) / (0.7 * phase)) * since)

    def observe(self, parts: Any, step: int) -> None:
        """Half the squared difference of two steps' gradients, over their square: of entries that are out."""
        for name, layer in self.layers.items() if self.knobs.watch else ():
            if layer.weight.grad is None:
                continue
            now = layer.weight.grad.detach().masked_fill(layer.mask, 0)
            if name in self.before:
                self.noise[0] += float((now - self.before[name].masked_fill(layer.mask, 0)).square().sum()) / 2
                self.noise[1] += float(now.square().sum())
            self.before[name] = layer.weight.grad.detach().clone()

    def finish(self, model: Decoder) -> None:
        for layer in self.layers.values():
            layer.choose(thinned.neighbours(layer.weight, self.knobs.pattern, self.knobs.axis))
        n, m = masking.parts(self.knobs.pattern)
        dense = sum(self.at(step)[1] > 0 for step in range(self.steps))  # a tightening pattern is counted as tight
        self.notes = {"mask_changes": round(thinned.changed(self.layers), 4),
                      "work": round(thinned.share_of_work(n / m, dense, self.steps), 4)}
        if self.knobs.watch and self.noise[1]:
            self.notes["gradient_noise"] = round(self.noise[0] / self.noise[1], 4)
        thinned.settle(model, self.layers)


def frames(pattern: str, schedule: str, side: int) -> list[str]:
    """The patterns that a tightening one goes through, the last as asked; side: what all groups must divide.

    >>> frames("1:8", "stepwise", 64), frames("1:8", "geometric", 32), frames("2:4", "linear", 64)
    (['7:8', '4:8', '2:8', '1:8'], ['4:32', '2:16', '1:8'], ['2:4'])
    """
    n, m = masking.parts(pattern)
    if schedule == "stepwise":
        between = [m >> k for k in range(1, m.bit_length()) if m >> k > n]
        return [f"{kept}:{m}" for kept in ([m - 1] if m - 1 > n else []) + [kept for kept in between if kept < m - 1] + [n]]
    if schedule == "geometric":
        wide = [k for k in reversed(range(1, FRAMES)) if side % (m << k) == 0 and m << k <= 64]
        return [f"{n << k}:{m << k}" for k in (*wide, 0)]
    return [pattern]
