"""The loop: calibrate, score, allocate, apply (mask first, then cut), recover, store.

    masked = copy of the model
    for each step:  levels = allocation of the step's budget
        for each block:  change = method(group, level, what the block reads);  put(change)   # the blocks after it see that
    cut what is zero, pack what has levels; recovery trains what is left; the folder appears when it is whole
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from lithe.compress import calibrate, health, surgery
from lithe.compress.allocation import Allocation, Plan, Problem
from lithe.compress.calibrate import Calibration, Source
from lithe.compress.change import Change, put, store
from lithe.compress.fitness import Fitness
from lithe.compress.groups import CUT_UNITS, Group
from lithe.compress.kept import Kept
from lithe.compress.measured import Measured, slope
from lithe.compress.mixture import parse
from lithe.compress.recovery import recover
from lithe.compress.step import Step
from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.model.linear import PackedLinear

Tell = Callable[[str, int, int], None]  # what is under way, done, of how many
PREDICTED = 2048  # tokens that a dry run measures its plan on


@dataclass
class Result:
    """model: the smaller one. allocations: one a step that has a budget. report: what was measured and noticed on the way.
    before: in a dry run, what the last plan is for."""

    model: Decoder
    allocations: list[Allocation] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    before: Decoder | None = None


def compress(model: Decoder, methods: Sequence[str], calibration: Calibration | None = None, *, seed: int = 0,
             dry_run: bool = False, tell: Tell | None = None, kept: Kept | None = None, item: int = 0) -> Result:
    """A smaller model by these steps, in order; `model` itself stays as it is.

    calibration: may be None where no step reads one. dry_run: allocate only. item: bytes of a weight as it will be stored, of
    the model's precision where not given. kept: where to keep what is done, and to go on from. Raises UsageError for steps that
    cannot be, UnsupportedError for models that a step cannot work on.
    """
    steps = [parse(text) for text in methods]
    if not steps:
        raise UsageError("say how: give at least one method, such as \"wanda:ratio=0.5\"")
    check(model, steps, calibration)
    work, result = surgery.copied(model), Result(model)
    for number, step in enumerate(steps):
        stage = None if step.recover is not None else Stage(
            work, step, calibration, seed + number, tell or _quiet, kept, number, item or model.dtype.itemsize)
        began = time.monotonic()
        if stage is not None:
            allocation = stage.allocate()
            result.allocations.append(allocation)
        if dry_run:
            told = None if stage is None else stage.predicted(allocation.levels, model)
            result.report.setdefault("predicted", []).append({
                "step": step.text, "planned": stage is not None, "kl": told})
            if stage is None:
                continue
            result.before = work
            if all(other.recover is not None for other in steps[number + 1:]):
                continue  # else what comes after plans for what this step leaves
        if stage is None:
            work, note = recover(work, model, step, calibration, seed=seed, kept=kept, number=number)
        else:
            work, note = stage.apply(allocation), stage.notes
        note = {"step": step.exact, "seconds": round(time.monotonic() - began, 2), **note}
        result.report.setdefault("steps", []).append(note)
        work.receipts = [*work.receipts, _receipt(step, seed, calibration, result, model)]
    result.model = model if dry_run else work
    return result


def check(model: Decoder, steps: Sequence[Step], calibration: Calibration | None) -> None:
    """Refuse what cannot be before anything is done."""
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise UnsupportedError("this model's weights are packed already: compress the model that it was made from (load it "
                               "with fast=False)")
    for place, step in enumerate(steps):
        if calibration is None and (step.needs & {"inputs", "moments", "gradients", "loss"} or step.recover is not None):
            free = not step.recover and not {"inputs", "moments", "gradients"} & step.needs
            raise UsageError(f"{step.text!r} needs a calibration text: give --calibration FILE"
                             + (", or name an allocation that measures nothing" if free else ""))
        later = [other for other in steps[place + 1:] if not getattr(other.recover, "after_packing", False)]
        if step.recover is None and "bits" in step.units and later:
            raise UnsupportedError(f"{step.text!r} packs weights, which nothing can change after it: put it last")
        if step.recover is None:
            step.groups(model)


def _receipt(step: Step, seed: int, calibration: Calibration | None, result: Result, parent: Decoder) -> dict[str, Any]:
    allocation = result.allocations[-1].json() if step.recover is None else None
    return {"method": step.text, "knobs": {"exact": step.exact}, "seed": seed, "parent": parent.source or None,
            "calibration": None if calibration is None else {"digest": calibration.digest, "tokens": calibration.tokens,
                                                                "length": calibration.length},
            "allocation": allocation}


def _quiet(what: str, done: int, total: int) -> None:
    """Tell nothing."""


class Stage:
    """One step on a model: groups, their options, levels, changes."""

    def __init__(self, work: Decoder, step: Step, calibration: Calibration | None, seed: int, tell: Tell, kept: Kept | None,
                 number: int, item: int):
        self.work, self.step, self.calibration, self.seed, self.tell = work, step, calibration, seed, tell
        self.kept, self.number = kept, number
        self.notes: dict[str, Any] = {}
        if work.config.pool:
            raise UnsupportedError("this model's layers read their weights from one array: compress the model it was made from")
        self.dense = work  # until a copy is needed
        self.groups = step.groups(work)
        self.options = step.options(work, self.groups, item)
        self.problem = self._problem(item)

    def _problem(self, item: int) -> Problem:
        inside = {site for group in self.groups for site in group.sites}
        whole = sum(weight.numel() for weight in self.work.parameters()) * item
        rest = whole - sum(group.weights for group in self.groups) * item if inside else whole
        measured = None if self.calibration is None else Measured(self)
        return Problem(groups=self.groups, options=self.options, budget=self.step.budget(self.groups, self.options, rest),
                       seed=self.seed, find_scores=self._scores if self.step.importance else None,
                       find_blocks=None if self.calibration is None else self._blocks,
                       find_loss=measured, find_store=None if measured is None else measured.store,
                       find_slope=None if self.calibration is None else partial(slope, self.work, self.calibration, self.seed))

    def allocate(self) -> Allocation:
        """A level for each group; one that was kept is taken again."""
        if self.kept is not None and (found := self.kept.allocation(self.number)) is not None:
            return found
        self.tell("allocating", 0, 1)
        levels = self._given(self.step.target.plan) if self.step.target.plan else self.step.solve(self.problem)
        spent = getattr(self.problem.find_loss, "spent", 0)
        notes = self.problem.notes | ({"search_tokens": spent} if spent else {})
        if "allocate" in self.step.specs:
            notes = {"by": str(self.step.specs["allocate"])} | notes
        made = Allocation(unit=self.step.unit, levels=levels, cost=self.problem.cost(levels), budget=self.problem.budget,
                          full=self.problem.full, notes=notes)
        if self.kept is not None:
            self.kept.keep_allocation(self.number, made)
        return made

    def _given(self, path: str) -> Plan:
        """The levels of a plan in a file. Raises UsageError where it is of other groups or beyond the budget."""
        found = Allocation.read(path)
        if found.unit != self.step.unit or found.levels.keys() != self.options.keys():
            raise UsageError(f"{path} is a plan of other groups than {self.step.text!r} has here")
        if not self.problem.whole(found.levels):
            raise UsageError(f"{path}: a half goes with all of its sites or with none")
        if (cost := self.problem.cost(found.levels)) > self.problem.budget * (1 + 1e-9):
            raise UsageError(f"{path}: this plan takes {cost:,.0f} bytes, {self.problem.budget:,.0f} are allowed")
        return found.levels

    def predicted(self, levels: Plan, dense: Decoder) -> float | None:
        """KL to the dense model in nats a token on the first calibration tokens, with all changes made on the inputs that there
        are before. None without a text, and for acts that change sites together."""
        if self.calibration is None or any(hasattr(self.step.act, verb) for verb in ("prepare", "smooth", "block")):
            return None
        measured = Measured(self)
        measured.fitness = Fitness(dense, self.calibration)
        measured.store({name: [level] for name, level in levels.items()})
        return measured(levels, PREDICTED)

    def apply(self, allocation: Allocation) -> Decoder:
        """Mask block after block, then cut and pack."""
        return finished(self.work, self.masked(allocation.levels))

    def masked(self, levels: Plan) -> list[tuple[Group, Change]]:
        """Put the changes of all groups in place in the working model."""
        if hasattr(self.step.act, "prepare"):
            self.step.act.prepare(self.work, self.calibration)  # type: ignore[union-attr]
        if hasattr(self.step.act, "smooth") and any(level is not None for level in levels.values()):
            self.step.act.smooth(self.work, self.calibration, levels, self.step.target)  # type: ignore[union-attr]
        self.dense, done = surgery.copied(self.work), []  # type: ignore[var-annotated]
        seen = self.work if self.step.target.sequential else self.dense
        for layer, found in calibrate.blocks(seen, self.calibration, sorted(self.step.needs)):
            self.tell(self.step.text, layer, len(self.work.layers))
            self._health(layer, found)
            source = self.source(layer, found)
            here = [group for group in self.groups if group.layer == layer]
            for group, change in self._changes(here, levels, source):
                put(self.work, group, change)
                done.append((group, change))
        self.tell(self.step.text, len(self.work.layers), len(self.work.layers))
        return done

    def _changes(self, here: list[Group], levels: Plan, source: Source) -> list[tuple[Group, Change]]:
        """The changes of a block: kept ones, or made now, all from the block as it was."""
        if self.kept is not None and (found := self.kept.changes(self.number, here)) is not None:
            return found
        whole = getattr(self.step.act, "block", None)
        if whole is not None:
            made = whole(here, {group.name: levels[group.name] for group in here}, source)
            changes = [(group, made[group.name]) for group in here]
        else:
            changes = [(group, self.step.change(group, levels[group.name], source)) for group in here]
        if self.kept is not None:
            self.kept.keep_changes(self.number, changes)
        return changes

    def source(self, layer: int, found: dict[str, Any], model: Decoder | None = None) -> Source:
        """What an act may look at. model: what is compressed, the working model where not given."""
        return Source(model or self.work, self.dense, layer, self.calibration, found, self.step.importance, self.seed,
                      target=self.step.target)

    def _health(self, layer: int, found: dict[str, Any]) -> None:
        for line in health.problems(layer, found, self.step.needs):
            self.notes.setdefault("health", []).append(line)

    def _scores(self) -> dict[str, Tensor]:
        """Scores of all units in the dense model."""
        scores: dict[str, Tensor] = {}
        for layer, found in calibrate.blocks(self.work, self.calibration, sorted(self.step.needs)):
            source = self.source(layer, found)
            scores |= {group.name: source.score(group) for group in self.groups if group.layer == layer}
        return scores

    def _blocks(self, metric: str, layers: Sequence[int] | None = None) -> list[float]:
        assert self.calibration is not None
        return calibrate.block_scores(self.work, self.calibration, metric, layers)


def finished(work: Decoder, done: list[tuple[Group, Change]]) -> Decoder:
    """The masked model in the form that is stored."""
    biased = [site for _, change in done for site in change.biases]
    if biased:
        surgery.with_biases(work, biased)
    if any(group.unit in CUT_UNITS and change.kept is not None for group, change in done):
        work, done = surgery.cut(work, done), surgery.renamed(work, done)
    store(work, done)
    return work
