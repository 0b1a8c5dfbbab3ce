"""What allocators ask for that must be measured: the loss of plans from end to end, and how steep the loss is.

Axes: N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lithe.compress import calibrate, surgery
from lithe.compress.calibrate import Calibration
from lithe.compress.change import Change, put, undo
from lithe.compress.fitness import Fitness, nll
from lithe.compress.groups import Group, Level
from lithe.errors import UsageError
from lithe.model.decoder import Decoder

if TYPE_CHECKING:
    from lithe.compress.allocation import Plan
    from lithe.compress.run import Stage

CARRIES = ("dense", "middle", "expected")


class Measured:
    """The loss of plans, end to end, from a store of each group's changes: of all options, made on the dense model when first
    asked for, or of those that `store` was told."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.fitness: Fitness | None = None
        self.model: Decoder | None = None
        self.changes: dict[tuple[str, Any], Change] = {}
        self.before: dict[str, dict[str, nn.Module]] = {}
        self.now: Plan = {}

    @property
    def spent(self) -> int:
        return 0 if self.fitness is None else self.fitness.spent

    def __call__(self, plan: Plan, tokens: int = 0) -> float:
        options = self.stage.options
        if self.fitness is None:
            self.store({name: [option.level for option in found] for name, found in options.items()})
        assert self.fitness is not None and self.model is not None
        levels = {name: plan.get(name, found[-1].level) for name, found in options.items()}
        moved = [group for group in self.stage.groups
                 if group.name not in self.now or self.now[group.name] != levels[group.name]]
        for group in reversed(moved):  # what was put last may hold a site that another group has too
            undo(self.model, self.before.pop(group.name, {}))
        for group in moved:
            self.before[group.name] = put(self.model, group, self.changes[group.name, levels[group.name]])
        self.now = levels
        thinner = [group.layer for group in self.stage.groups if levels[group.name] != options[group.name][-1].level]
        return self.fitness(self.model, tokens, min(thinner, default=len(self.model.layers) - 1))

    def store(self, levels: Mapping[str, Sequence[Level]], carry: str = "dense") -> None:
        """Make these levels of each group, as `Problem.store` says."""
        stage = self.stage
        assert stage.calibration is not None
        if carry not in CARRIES:
            raise UsageError(f"blocks are calibrated on {', '.join(CARRIES)}, not {carry!r}")
        if self.fitness is None:
            self.fitness = Fitness(stage.work, stage.calibration)
        self.fitness.before = 0, []  # richest levels may be made anew
        self.model, self.now, self.before, self.changes = surgery.copied(stage.work), {}, {}, {}
        walked = stage.work if carry == "dense" else surgery.copied(stage.work)
        for layer, found in calibrate.blocks(walked, stage.calibration, sorted(stage.step.needs)):
            source = stage.source(layer, found, walked)
            here = [group for group in stage.groups if group.layer == layer]
            for group in here:
                for level in levels[group.name]:
                    self.changes[group.name, level] = stage.step.change(group, level, source)
            for group in here if carry != "dense" else ():
                own = sorted(levels[group.name], key=float)  # type: ignore[arg-type]
                carried = own[len(own) // 2 : len(own) // 2 + 1] if carry == "middle" else own
                put(walked, group, self._mean(walked, group, carried))

    def _mean(self, model: Decoder, group: Group, levels: list[Level]) -> Change:
        """The mean of a group's masked weights over levels, each weighted by what it keeps."""
        total, made = sum(float(level or 0) for level in levels) or 1.0, Change()
        for level in levels:
            old = put(model, group, self.changes[group.name, level])
            for site in group.sites:
                module: Any = model.get_submodule(site)
                part = module.weight.detach() * (float(level or 0) / total)
                made.weights[site] = made.weights[site] + part if site in made.weights else part
            undo(model, old)
        return made


@torch.no_grad()
def slope(model: Decoder, calibration: Calibration, seed: int, groups: list[Group], step: float, samples: int) -> float:
    """The mean over single rows of |L+ - L-| / 2 step, each along a normal direction of its own; the weights come back bit for
    bit. L is the loss in nats a token."""
    rows = [row for batch in calibration.batches for row in batch["ids_BT"]][:samples]
    weights = [model.get_parameter(f"{site}.weight") for group in groups for site in group.sites]
    before, total = [weight.clone() for weight in weights], 0.0
    for number, row in enumerate(rows):
        losses = []
        for sign in (1.0, -1.0):
            dice = torch.Generator().manual_seed(seed * 100_003 + number)  # the same direction twice, never stored
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old + sign * step * torch.randn(weight.shape, generator=dice, dtype=weight.dtype))
            losses.append(nll(model, Calibration([{"ids_BT": row[None]}])))
        total += abs(losses[0] - losses[1]) / (2 * step)
    for weight, old in zip(weights, before, strict=True):
        weight.copy_(old)
    return total / max(1, len(rows))
