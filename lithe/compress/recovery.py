"""Recovery: what is left after a step is fitted, by a closed form, by training parts beside the weights, or the weights.

A method of `recover` owns no loop: it says what is trained, by which loss, and what becomes of it. One that prunes while it
trains gives the smaller model back from `finish`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lithe.compress.calibrate import Calibration, shifted
from lithe.errors import UsageError
from lithe.model.adapted import Below, Part, remade
from lithe.model.decoder import Decoder
from lithe.model.site import Site
from lithe.train.batches import Batch
from lithe.train.guide import Guide
from lithe.train.loop import Plan, fit
from lithe.train.loss import next_token
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine

if TYPE_CHECKING:
    from lithe.compress.kept import Kept
    from lithe.compress.step import Step


class Beside(nn.Module):
    """A linear layer with a part beside it, while the part is trained."""

    def __init__(self, base: nn.Module, part: Part):
        super().__init__()
        self.base, self.part = base, part
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.part.after(x, self.base(self.part.before(x)), Below(self.base))


def attach(model: Decoder, parts: dict[str, Part]) -> list[nn.Parameter]:
    """Put parts beside linear layers, by site; gives their weights."""
    for site, part in parts.items():
        place = Site(site, model)
        place.swap(Beside(place.module, part))
    return [weight for part in parts.values() for weight in part.parameters()]


def merge(model: Decoder) -> None:
    """Merge every part that is beside a layer into its weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Beside):
            base: Any = module.base
            weight_NK, bias_N = module.part.merged(base.weight.detach(), base.bias)
            Site(name, model).swap(remade(base, weight_NK.detach(), bias_N))


def recover(work: Decoder, dense: Decoder, step: Step, calibration: Calibration | None, *, seed: int, kept: Kept | None,
            number: int) -> tuple[Decoder, dict[str, Any]]:
    """The model after a step of recovery, and what it came to: the loss before and after on the calibration text."""
    method = step.recover
    if calibration is None or method is None:
        raise UsageError(f"{step.text!r} needs a calibration text: give --calibration FILE")
    weights = method.begin(work, dense, calibration, seed)
    for weight in work.parameters():
        weight.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    note: dict[str, Any] = {"trained": sum(weight.numel() for weight in weights)}
    if weights and method.steps:
        plan = Plan(schedule=Cosine(steps=method.steps, warmup=max(1, method.steps // 20)),
                    optimizer=Optimizer(lr=method.rate, weight_decay=0.0), log_every=max(1, method.steps))
        at = fit(work, _batches(calibration, hasattr(method, "loss"), getattr(method, "steps_each", 1)),
                 getattr(method, "loss", next_token), plan, quiet=True, guide=Guide(method),
                 folder=None if kept is None else kept.path(f"{number}-fit"))
        note |= {"steps": at.step, "tokens": at.tokens, "loss": at.loss}
    if hasattr(method, "finish"):
        work = method.finish(work) or work
    note |= getattr(method, "notes", {})
    merge(work)
    for weight in work.parameters():
        weight.requires_grad_(False)
    return work.eval(), note


def _batches(calibration: Calibration, counted: bool, each: int) -> Any:
    """Batch after batch, each for so many steps. counted: they say their step, for losses that change on the way."""

    def batch(call: int, ending: bool) -> Batch:
        ids_BT = calibration.batches[call // each % len(calibration.batches)]["ids_BT"]
        return {"ids_BT": ids_BT, "targets_BT": shifted(ids_BT), **({"step": torch.tensor(call)} if counted else {})}

    return batch
