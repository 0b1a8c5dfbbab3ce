"""The loop every training in lithe runs through: step = loss sums over micro-batches, one clip, one update."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lithe.errors import LitheError, UsageError
from lithe.train import checkpoint, optim
from lithe.train.batches import Batch
from lithe.train.log import Log
from lithe.train.optim import Optimizer
from lithe.train.schedule import Schedule, Wsd

Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
Batches = Callable[[int, bool], Batch]  # (number of the micro-batch, whether the schedule's ending has begun)


class Interrupted(LitheError):
    """Ctrl-C or SIGTERM: the run is saved and the same command goes on from there."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train. With `seconds`, an open-ended Wsd begins its decay in time to end then."""

    schedule: Schedule
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    seconds: float | None = None
    decay: float = 0.25  # the share of `seconds` that the decay takes
    accumulate: int = 1  # micro-batches a step
    clip: float = 1.0
    autocast: torch.dtype | None = None
    compile: bool = False
    save_every: float = 180.0  # seconds
    log_every: int = 10  # steps


@dataclass
class Progress:
    """Where a run is: all that a resumed one must know beside weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = float("nan")  # of the last step, nats a token
    schedule: dict = dataclasses.field(default_factory=dict)


def fit(model: nn.Module, batches: Batches, loss: Loss, plan: Plan, *, folder: Path | None = None,
        quiet: bool = False, on_save: Callable[[Path], None] | None = None) -> Progress:
    """Train what requires a gradient until the schedule's last step; resume from `folder` if it holds a checkpoint.

    Raises Interrupted once a signal came and the state is saved; on_save gets the path of every checkpoint written.
    """
    if plan.schedule.steps is None and plan.seconds is None:
        raise UsageError("an open-ended schedule needs a time to end: give `seconds`")
    if plan.seconds is not None and not isinstance(plan.schedule, Wsd):
        raise UsageError("`seconds` is for the schedule Wsd: no other can begin its decay when time is short")
    run = Run(model, batches, loss, plan, folder, on_save)
    run.resume()
    with Log(folder / "log.jsonl" if folder else None, quiet=quiet) as log, stop_signals(folder) as stopped:
        model.train()
        while not run.done:
            record = run.step()
            if record:
                log.write(record)
            if stopped():
                raise Interrupted(f"stopped by a signal, saved as {run.save()}: the same command resumes at step {run.at.step}")
            if folder and time.monotonic() - run.saved > plan.save_every:
                run.save()
        if folder:
            run.save()
    model.eval()
    return run.at


class Run:
    """The state of one call of fit."""

    def __init__(self, model: nn.Module, batches: Batches, loss: Loss, plan: Plan, folder: Path | None,
                 on_save: Callable[[Path], None] | None):
        self.model, self.batches, self.plan, self.folder, self.on_save = model, batches, plan, folder, on_save
        self.schedule, self.at = plan.schedule, Progress()
        self.optimizers = optim.build(model, plan.optimizer)
        self.weights = list(optim.trainable(model).values())
        cast = self._autocast(loss)
        self.loss = torch.compile(cast, dynamic=False) if plan.compile else cast  # shapes rarely change: best code for each
        self.saved, self.pace = time.monotonic(), 0.0
        self.since: list[tuple[float, int, float]] = []  # (loss sum, tokens, seconds) since the last record

    @property
    def done(self) -> bool:
        return self.schedule.steps is not None and self.at.step >= self.schedule.steps

    def step(self) -> dict | None:
        """One update; returns a record when one is due."""
        start = time.monotonic()
        self._watch_the_clock()
        step, plan = self.at.step, self.plan
        optim.set_rate(self.optimizers, self.schedule(step))
        total, tokens = 0.0, 0
        for part in range(plan.accumulate):
            batch = self.batches(step * plan.accumulate + part, self.schedule.ending(step))
            summed, counted = self.loss(self.model, batch)
            summed.backward()
            total, tokens = total + summed.item(), tokens + int(counted)
        norm = self._update(tokens)
        seconds = time.monotonic() - start
        self.at.step, self.at.tokens, self.at.loss = step + 1, self.at.tokens + tokens, total / max(1, tokens)
        self.at.seconds += seconds
        self.pace = seconds if not self.pace else 0.98 * self.pace + 0.02 * min(seconds, 4 * self.pace)
        self.since.append((total, tokens, seconds))
        return self._record(norm) if self.at.step % plan.log_every == 0 or self.done else None

    def save(self) -> Path | None:
        """Write a checkpoint; a run on a time budget also replans its decay to what the machine gives now."""
        self.saved = time.monotonic()
        if self.schedule.ending(self.at.step) and not self.done:
            self._end_in_time()
        if self.folder is None:
            return None
        self.at.schedule = dataclasses.asdict(self.schedule)
        path = checkpoint.save(self.folder, self.at.step, self.model, self.optimizers, dataclasses.asdict(self.at))
        if self.on_save:
            self.on_save(path)
        return path

    def resume(self) -> None:
        path = checkpoint.latest(self.folder) if self.folder else None
        if path is None:
            return
        self.at = Progress(**checkpoint.load(path, self.model, self.optimizers))
        if self.plan.seconds is not None:  # a decay that the clock began is part of the state
            self.schedule = dataclasses.replace(self.schedule, **self.at.schedule)

    def _autocast(self, loss: Loss) -> Loss:
        dtype, device = self.plan.autocast, self.weights[0].device.type

        def cast(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            with torch.autocast(device, dtype, enabled=dtype is not None):
                return loss(model, batch)

        return cast

    def _update(self, tokens: int) -> float:
        """Divide the summed gradients by the tokens of the whole step, clip, and move the weights."""
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        torch._foreach_div_(grads, float(max(1, tokens)))
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.plan.clip).item()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

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

    def _record(self, norm: float) -> dict:
        total, tokens, seconds = (sum(column) for column in zip(*self.since, strict=True))
        self.since = []
        left = None
        if self.plan.seconds is not None:
            left = max(0.0, self.plan.seconds - self.at.seconds)
        elif self.schedule.steps is not None:
            left = (self.schedule.steps - self.at.step) * self.pace
        return {"step": self.at.step, "loss": total / max(1, tokens), "rate": self.schedule(self.at.step - 1), "norm": norm,
                "tokens": self.at.tokens, "seconds": round(self.at.seconds, 2), "tokens_per_second": tokens / seconds,
                "seconds_left": left}


@contextlib.contextmanager
def stop_signals(folder: Path | None) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question asked between steps. Without a folder they act as ever."""
    came: list[int] = []
    if folder is None:
        yield lambda: False
        return
    before = {s: signal.signal(s, lambda number, _: came.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
