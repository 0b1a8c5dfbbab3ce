"""The loop every training in lithe runs through: step = loss sums over micro-batches, one clip, one update."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lithe.errors import LitheError, UnsupportedError, UsageError
from lithe.train import checkpoint, memory, optim
from lithe.train.batches import Batch, real
from lithe.train.guide import Guide
from lithe.train.log import Log
from lithe.train.optim import Optimizer
from lithe.train.schedule import Schedule, Wsd
from lithe.train.signals import stop_signals
from lithe.train.team import ALONE, Team, whole

Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
# (number of the call, whether the schedule's ending has begun) -> one micro-batch, or all that the step has
Batches = Callable[[int, bool], Batch | list[Batch]]


class Interrupted(LitheError):
    """Ctrl-C or SIGTERM: the run is saved and the same command goes on from there."""

    exit_code = 130


class Diverged(LitheError):
    """The loss or its gradient is no number; the weights are as the step before left them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train. With `seconds`, an open-ended Wsd begins its decay in time to end then."""

    schedule: Schedule
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    seconds: float | None = None
    decay: float = 0.25  # the share of `seconds` that the decay takes
    accumulate: int = 1  # calls of `batches` a step
    clip: float = 1.0
    autocast: torch.dtype | None = None
    compile: bool = False
    save_every: float = 180.0  # seconds
    log_every: int = 10  # steps
    check_every: int = 0  # steps; 0: after the last one only


@dataclass
class Progress:
    """Where a run is: all that a resumed one must know beside weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = float("nan")  # of the last step, nats a token
    schedule: dict = dataclasses.field(default_factory=dict)
    run: dict = dataclasses.field(default_factory=dict)  # what it was begun with
    valid: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # (step, held-out loss)
    held: dict = dataclasses.field(default_factory=dict)  # most bytes, by what they hold


def fit(model: nn.Module, batches: Batches, loss: Loss, plan: Plan, *, folder: Path | None = None,
        quiet: bool = False, on_save: Callable[[Path], None] | None = None, valid: Callable[[], Iterable[Batch]] | None = None,
        guide: Guide | None = None, identity: dict[str, Any] | None = None, team: Team = ALONE,
        trackers: Iterable[Callable[[dict[str, Any]], None]] = ()) -> Progress:
    """Train what requires a gradient until the schedule's last step; resume from `folder` if it holds a checkpoint.

    on_save gets the path of every checkpoint written. valid: held-out micro-batches, whose loss is taken before the first step,
    every `check_every` and after the last. guide: a method's word on a step. identity: what the run is made of; a folder with
    another's is refused. Raises Interrupted once a signal came and the state is saved, Diverged for a loss that is no number.
    """
    if plan.schedule.steps is None and plan.seconds is None:
        raise UsageError("an open-ended schedule needs a time to end: give `seconds`")
    if plan.seconds is not None and not isinstance(plan.schedule, Wsd):
        raise UsageError("`seconds` is for the schedule Wsd: no other can begin its decay when time is short")
    if plan.seconds is not None and team.size > 1:
        raise UnsupportedError("a run by several processes cannot be timed by their clocks: give steps instead of `seconds`")
    if plan.optimizer.name == "muon" and team.size > 1:
        raise UnsupportedError("Muon works on whole matrices, which several processes hold in pieces: use the optimizer adamw")
    run = Run(model, batches, loss, plan, folder, on_save, guide, team)
    run.resume(identity or {})
    path = folder / "log.jsonl" if folder and team.first else None
    with (memory.kept_pages(), Log(path, after=run.at.step, quiet=quiet or not team.first, trackers=trackers) as log,
          stop_signals(folder is not None) as stopped):
        if valid is not None and run.at.step == 0:
            log.write({"step": 0, "valid_loss": run.check(valid())})
        model.train()
        while not run.done:
            record = run.step()
            if valid is not None and (run.done or (plan.check_every and run.at.step % plan.check_every == 0)):
                record = (record or run.record()) | {"valid_loss": run.check(valid())}
            if record and team.first:
                log.write(record)
            stop, due = team.sum(stopped(), team.first and time.monotonic() - run.saved > plan.save_every)
            if stop and folder:
                raise Interrupted(f"stopped by a signal, saved as {run.save()}: the same command resumes at step {run.at.step}")
            if due and folder:
                run.save()
        run.hold()
        if folder:
            run.save()
    model.eval()
    return run.at


class Slot(nn.Module):
    """A model with its loss as one module, whose pass is what a step compiles and shards."""

    def __init__(self, model: nn.Module, loss: Loss, autocast: torch.dtype | None):
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.autocast(batch["ids_BT"].device.type, self.autocast, enabled=self.autocast is not None):
            return self.loss(self.model, batch)


class Run:
    """The state of one call of fit."""

    def __init__(self, model: nn.Module, batches: Batches, loss: Loss, plan: Plan, folder: Path | None,
                 on_save: Callable[[Path], None] | None, guide: Guide | None, team: Team):
        self.model, self.batches, self.plan, self.folder, self.on_save = model, batches, plan, folder, on_save
        self.guide, self.team = guide or Guide(), team
        self.schedule, self.at = plan.schedule, Progress()
        slot = Slot(model, loss, plan.autocast)
        team.shard(slot, getattr(model, "layers", ()))
        self.optimizers = self.guide.optimizers(plan.optimizer) or optim.build(model, plan.optimizer)
        self.weights = list(optim.trainable(model).values())
        self.device = self.weights[0].device
        self.slot = torch.compile(slot, dynamic=False) if plan.compile else slot  # shapes rarely change: best code for each
        self.saved, self.pace, self.norm = time.monotonic(), 0.0, 0.0
        self.since: list[tuple[float, ...]] = []  # (loss sum, tokens learned, tokens read, seconds) since the last record

    @property
    def done(self) -> bool:
        return self.schedule.steps is not None and self.at.step >= self.schedule.steps

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.plan.optimizer.lr * self.schedule(step)

    def step(self) -> dict | None:
        """One update; returns a record when one is due."""
        start = time.monotonic()
        self._watch_the_clock()
        optim.set_rate(self.optimizers, self.schedule(self.at.step))
        sums = torch.zeros(3, dtype=torch.float64)  # loss, tokens learned, tokens read
        for batch in self._parts():
            summed, counted = self.slot({name: value.to(self.device) for name, value in batch.items()})
            summed.backward()
            sums += torch.tensor([summed.item(), float(counted), float(real(batch).sum())], dtype=torch.float64)
        total, learned, read = self.team.sum(*sums.tolist())
        tokens = int(learned)
        self._must_be_finite(total, "loss")
        self._update(tokens)
        seconds = time.monotonic() - start
        self.at.step, self.at.tokens, self.at.loss = self.at.step + 1, self.at.tokens + tokens, total / max(1, tokens)
        self.at.seconds += seconds
        self.pace = seconds if not self.pace else 0.98 * self.pace + 0.02 * min(seconds, 4 * self.pace)
        self.since.append((total, tokens, read, seconds))
        return self.record() if self.at.step % self.plan.log_every == 0 or self.done else None

    @torch.no_grad()
    def check(self, batches: Iterable[Batch]) -> float:
        """The held-out loss, in nats a token."""
        self.model.eval()
        total, tokens = 0.0, 0
        for batch in batches:
            summed, counted = self.slot({name: value.to(self.device) for name, value in batch.items()})
            total, tokens = total + summed.item(), tokens + int(counted)
        self.model.train()
        total, counted_all = self.team.sum(total, tokens)
        self.at.valid.append((self.at.step, total / max(1, counted_all)))
        return self.at.valid[-1][1]

    def save(self) -> Path | None:
        """Write a checkpoint; a run on a time budget also replans its decay to what the machine gives now."""
        self.saved = time.monotonic()
        if self.schedule.ending(self.at.step) and not self.done:
            self._end_in_time()
        if self.folder is None:
            return None
        self.at.schedule = dataclasses.asdict(self.schedule)
        path = checkpoint.save(self.folder, self.at.step, self.model, self.optimizers, dataclasses.asdict(self.at),
                               self.guide.state(), self.team)
        if self.on_save and self.team.first:
            self.on_save(path)
        return path

    def resume(self, identity: dict[str, Any]) -> None:
        path = checkpoint.latest(self.folder) if self.folder else None
        if path is None:
            self.at.run = identity
            return
        begun = checkpoint.read_state(path).get("run", {})
        unlike = sorted(key for key in begun.keys() | identity.keys() if begun.get(key) != identity.get(key))
        if begun and unlike:
            raise UsageError(f"{self.folder} holds a run with another {', '.join(unlike)}: take another folder, or delete it")
        self.guide.restore(checkpoint.load_method(path))  # first, since it may say how many entries there are
        self.at = Progress(**checkpoint.load(path, self.model, self.optimizers, self.team))
        if self.plan.seconds is not None:  # a decay that the clock began is part of the state
            self.schedule = dataclasses.replace(self.schedule, **self.at.schedule)

    def hold(self) -> None:
        """Note the most bytes held yet, by what they hold."""
        now = memory.report(self.model, self.optimizers) | ({"method": held} if (held := self.guide.held()) else {})
        self.at.held = {name: max(self.at.held.get(name, 0), now.get(name, 0)) for name in self.at.held | now}

    def record(self) -> dict:
        """What happened since the last record; nothing newer than it where it is asked for twice."""
        total, tokens, read, seconds = (sum(column) for column in zip(*(self.since or [(0.0,) * 4]), strict=True))
        self.since = []
        left = None
        if self.plan.seconds is not None:
            left = max(0.0, self.plan.seconds - self.at.seconds)
        elif self.schedule.steps is not None:
            left = (self.schedule.steps - self.at.step) * self.pace
        return {"step": self.at.step, "steps": self.schedule.steps, "loss": total / max(1, tokens),
                "rate": self.rate(self.at.step - 1), "norm": self.norm, "tokens": self.at.tokens,
                "seconds": round(self.at.seconds, 2), "tokens_per_second": read / max(seconds, 1e-9), "seconds_left": left,
                "peak_bytes": memory.peak(self.device)}

    def _parts(self) -> Iterable[Batch]:
        step, calls = self.at.step, self.plan.accumulate
        for call in range(step * calls, (step + 1) * calls):
            batch = self.batches(call, self.schedule.ending(step))
            yield from batch if isinstance(batch, list) else [batch]

    def _update(self, tokens: int) -> None:
        """Divide the summed gradients by the tokens of the whole step, clip, and move the weights."""
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        # Sharded gradients come as means over the processes.
        torch._foreach_div_(grads, float(max(1, tokens)) / self.team.size)
        self.guide.divide(float(max(1, tokens)))
        if (extra := self.guide.penalty()) is not None:
            extra.backward()
        self.guide.observe(self.at.step + 1)
        self.norm = whole(torch.nn.utils.clip_grad_norm_(self.weights, self.plan.clip)).item()
        self._must_be_finite(self.norm, "gradient")
        for optimizer in self.optimizers:
            optimizer.step()
        if self.guide.speaks:  # before and after: what is held may change with the step
            self.hold()
        self.guide.update(self.at.step + 1, self.optimizers)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _must_be_finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        last = checkpoint.latest(self.folder) if self.folder else None
        kept = f"the last good state is {last}" if last else "nothing was saved yet"
        raise Diverged(f"the {what} is {value} at step {self.at.step + 1}, at a learning rate of "
                       f"{self.rate(self.at.step):.3g}; {kept}. Take a lower rate, or a wider dtype")

    def _watch_the_clock(self) -> None:
        budget = self.plan.seconds
        late = budget is not None and self.at.seconds >= budget * (1 - self.plan.decay)
        if late and self.pace and not self.schedule.ending(self.at.step):
            self._end_in_time()

    def _end_in_time(self) -> None:
        """Plan the decay, anew at each save, so that it is done when the seconds are."""
        if self.plan.seconds is not None and isinstance(self.schedule, Wsd):
            left = self.plan.seconds - self.at.seconds
            self.schedule = self.schedule.end(self.at.step, int(left / self.pace))
