"""One training of a matrix: a method, or all weights, on a shift at a rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lithe.bench.matrix import data_folder
from lithe.bench.tuning._plan import Plan
from lithe.bench.tuning._text import Texts
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.train.feed import Feed
from lithe.train.guide import Guide
from lithe.train.loop import Diverged
from lithe.train.loss import Chunked
from lithe.train.optim import trainable
from lithe.train.session import Settings, train
from lithe.train.text import Examples
from lithe.tune.rack import Rack
from lithe.tune.run import methods

ROWS = 2048  # tokens of a pass that only scores


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run: a method by its name in the plan and by the spec it has there, and where, how much, how fast, by which dice."""

    method: str
    spec: str
    base: str
    shift: str
    share: float | None  # None: its size follows no share
    rate: float
    seed: int


def open_base(model: str | Path, base: str, *, offline: bool = False) -> Decoder:
    """The frozen model in a precision."""
    if base == "float32":
        return load(model, dtype="float32", fast=False, offline=offline)
    return load(model, dtype=base, offline=offline)


def run(cell: Cell, model: Decoder, plan: Plan, found: Texts, home: Examples) -> dict[str, Any]:
    """Train and score. Losses in nats a token; bytes and values counted, not estimated."""
    torch.manual_seed(cell.seed)
    wanted, objectives = methods(cell.spec.replace("{data}", str(data_folder())) if "{data}" in cell.spec else cell.spec)
    adapter, beside = None, [spec.entry.module.Method(spec.knobs, model) for spec in objectives]
    if wanted is not None:
        rack = Rack.of(model)
        rack.make(wanted.exact, name="a", seed=cell.seed)
        adapter = rack.train("a")
    else:
        model.requires_grad_(True)
    for objective in beside:
        if hasattr(objective, "enter"):
            objective.enter(model)
    guide = Guide(adapter.method, adapter.parts, beside) if adapter else Guide(objectives=beside)
    values = sum(weight.numel() for weight in trainable(model).values())
    settings = Settings(steps=plan.steps, batch_tokens=plan.tokens, lr=cell.rate, seed=cell.seed, weight_decay=0.0,
                        packing=True, log_every=plan.every or 10)
    path: list[tuple[int, float, float]] = []  # step, loss, loss of the old kind

    def look(record: dict[str, Any]) -> None:
        path.append((record["step"], score(model, found.test), score(model, home)))
        model.train()

    begun, cpu = time.perf_counter(), time.process_time()
    try:
        session = train(model, found.train, settings, context=plan.context, guide=guide, quiet=True,
                        adapter=adapter is not None, trackers=[look] if plan.every else [])
    except Diverged as problem:
        return {"diverged": str(problem), "trainable": values}
    spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    guide.finish()
    for objective in beside:
        if hasattr(objective, "leave"):
            objective.leave(model)
    held = [] if adapter is None else [t for part in adapter.parts.values() for t in part.state_dict().values()]
    kept = sum(tensor.numel() for tensor in held if tensor.is_floating_point()) if held else values
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return {"trainable": values, "values": kept, "file_bytes": size, "loss": session.at.loss, "tokens": session.at.tokens,
            "chosen_by": score(model, found.choose), "after": score(model, found.test), "home_after": score(model, home),
            "bytes": session.bytes, "step_seconds": session.at.seconds, **spent, **({"path": path} if path else {})}


@torch.no_grad()
def score(model: Decoder, examples: Examples) -> float:
    """Mean loss of examples, in nats a token."""
    model.eval()
    feed, loss = Feed(examples=examples, tokens=ROWS, context=int(examples.lengths.max()), packing=False), Chunked()
    total, tokens = 0.0, 0
    for step in range(feed.steps(1)):
        for batch in feed(step):
            summed, counted = loss(model, batch)
            total, tokens = total + summed.item(), tokens + int(counted)
    return total / tokens
