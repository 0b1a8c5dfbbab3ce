"""Seconds and bytes of a tuning step, methods side by side in one run, at the shape of a model of 135 million weights.

    python tools/tuning_cost.py s2ft:share=0.0068 lora:rank=3 --tokens 512 --repeats 6
    python tools/tuning_cost.py s2ft:share=0.0068 --repeats 3 --only   # the process's peak, of this method alone

"full" stands for all weights. Text and weights are random: neither changes what a step costs. A method's own word on a step
is part of it, and of its bytes. With --only the peak is that of a process that holds model, data and this method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lithe.bench import provenance
from lithe.bench.ledger import Ledger
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train import memory, optim
from lithe.train.guide import Guide
from lithe.train.loss import Chunked
from lithe.tune.rack import Rack

SHAPE: dict[str, Any] = {"vocab": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "ffn": 1536, "context": 8192,
                         "tied": True}
LOSS = Chunked(256)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("specs", nargs="+")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--only", action="store_true", help="tell the process's peak too; for one method a process")
    parser.add_argument("--cpu", action="store_true", help="count a single thread's processor seconds, without waiting")
    parser.add_argument("--ledger")
    given = parser.parse_args()
    if given.cpu:
        torch.set_num_threads(1)
    clock = time.process_time if given.cpu else time.perf_counter
    model = Decoder(Config(**SHAPE | {"layers": given.layers})).init(0).train()
    rack, dice = Rack.of(model), torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, SHAPE["vocab"], (1, given.tokens + 1), generator=dice)
    batch = {"ids_BT": ids_BT[:, :-1], "targets_BT": ids_BT[:, 1:]}
    ways = [Way(model, rack, spec) for spec in given.specs]
    for way in ways:
        way.begin(given.repeats + 1)
        way.step(batch, clock)  # which warms up
    for _ in range(given.repeats):
        for way in ways:
            way.seconds.append(way.step(batch, clock))
    peak = {"peak_MiB": round(memory.peak(model.device) / 2**20)} if given.only else {}
    book = Ledger(given.ledger) if given.ledger else None
    for way in ways:
        told = way.told(batch) | peak
        print(json.dumps(told), flush=True)
        if book is not None:
            model.source = "shape:135m"
            settings = {name: getattr(given, name) for name in ("tokens", "repeats", "layers", "cpu", "only")}
            book.append(provenance.record("tuning-cost", model, measured=told, inputs=ids_BT.tolist(), method=way.spec, seed=0,
                                          settings=settings))


class Way:
    """One method on the model that all share; its parts are in place only while it steps."""

    def __init__(self, model: Decoder, rack: Rack, spec: str):
        self.model, self.rack, self.spec, self.seconds = model, rack, spec, list[float]()
        self.adapter, self.at, self.most = None if spec == "full" else rack.make(spec, name="a"), 0, 0
        self.guide = Guide(self.adapter and self.adapter.method, self.adapter and self.adapter.parts)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.leave()

    def begin(self, steps: int) -> None:
        self.enter()
        self.guide.begin(steps)
        settings = optim.Optimizer(lr=1e-4, weight_decay=0.0)
        self.optimizers = self.guide.optimizers(settings) or optim.build(self.model, settings)
        self.leave()

    def enter(self) -> None:
        if self.adapter is None:
            self.model.requires_grad_(True)
        else:
            if self.adapter.name not in self.rack.adapters:
                self.adapter.hosts.clear()
                self.rack.add(self.adapter)
            self.rack.train(self.adapter.name)

    def leave(self) -> None:
        if self.adapter is not None:
            self.rack.remove(self.adapter.name)

    def step(self, batch: dict, clock: Callable[[], float]) -> float:
        self.enter()
        start = clock()
        total, tokens = LOSS(self.model, batch)
        (total / tokens).backward()
        self.at += 1
        self.guide.divide(1.0)
        if (extra := self.guide.penalty()) is not None:
            extra.backward()
        self.guide.observe(self.at)
        for optimizer in self.optimizers:
            optimizer.step()
        self.most = max(self.most, self.guide.held())
        self.guide.update(self.at, self.optimizers)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        seconds = clock() - start
        self.leave()
        return seconds

    def told(self, batch: dict) -> dict:
        self.enter()
        kept = memory.kept(lambda: LOSS(self.model, batch)[0], self.model)
        held = memory.report(self.model, self.optimizers)
        self.leave()
        trained = held["trainable"] // 4
        return {"spec": self.spec, "trained": trained, "seconds": round(statistics.median(self.seconds), 3),
                "least": round(min(self.seconds), 3), "kept_MiB": round(kept / 2**20, 1),
                "state_MiB": round((held["gradients"] + held["optimizer"]) / 2**20, 1),
                "method_MiB": round(self.most / 2**20, 1)}


if __name__ == "__main__":
    main()
