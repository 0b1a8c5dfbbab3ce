"""LoRA's tokens/s here and with PEFT and transformers' Trainer: same weights, rows, precision and threads, turn by turn.

    python tools/lora_speed.py shape:135m --rows 4 --length 128 --rounds 5 --steps 3 --ledger docs/ledger-tuning.jsonl

Both train rank 8 beside all linear layers of the blocks, AdamW, clipped gradients, every token counted. A round is so many
steps by each of them, in turns; the first step of a turn is left out. Last, one turn of each is profiled: what dense products
take of it bounds the ratio, since both make the same ones with the same library.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from lithe.bench import provenance, quiet, stats
from lithe.bench.engines._target import prepare
from lithe.bench.ledger import Ledger
from lithe.model.load import load
from lithe.train.guide import Guide
from lithe.train.session import Settings, train
from lithe.train.text import Examples, of_ids
from lithe.tune.rack import Rack

SPEC, RANK, RATE = "lora:rank=8", 8, 1e-3


class Ours:
    """lithe: the loop behind `lithe tune`."""

    def __init__(self, folder: Path, examples: Examples, order: argparse.Namespace):
        self.model, self.examples, self.order = load(folder, dtype="float32", fast=False), examples, order
        rack = Rack.of(self.model)
        rack.make(SPEC, name="a")
        self.adapter = rack.train("a")

    def turn(self) -> tuple[list[float], float]:
        """Seconds of each step, and the first step's loss."""
        order, losses = self.order, []
        ends = [order.clock()]
        note = lambda record: (ends.append(order.clock()), losses.append(record["loss"]))
        settings = Settings(steps=order.steps + 1, batch_tokens=order.rows * order.length, lr=RATE, packing=False, bins=0,
                            log_every=1)
        train(self.model, self.examples, settings, context=order.length, adapter=True, quiet=True, trackers=[note],
              guide=Guide(self.adapter.method, self.adapter.parts))
        return [b - a for a, b in pairwise(ends)], losses[0]


class Theirs:
    """PEFT and transformers' Trainer, at their own settings."""

    def __init__(self, folder: Path, examples: Examples, order: argparse.Namespace):
        import peft
        import transformers

        transformers.logging.set_verbosity_error()
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = peft.LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model, self.order = peft.get_peft_model(base, config), order
        self.data = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids, _ in examples]

    def turn(self) -> tuple[list[float], float]:
        import transformers

        ends: list[float] = []

        clock = self.order.clock

        class Clock(transformers.TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                ends.append(clock())

            def on_train_end(self, *_: Any, **__: Any) -> None:
                ends.append(clock())

        with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = transformers.TrainingArguments(
                out, per_device_train_batch_size=self.order.rows, max_steps=self.order.steps + 1, learning_rate=RATE,
                use_cpu=True, save_strategy="no", logging_steps=1, report_to=[], disable_tqdm=True)
            trainer = transformers.Trainer(self.model, settings, train_dataset=self.data, callbacks=[Clock()],
                                           data_collator=transformers.default_data_collator)
            trainer.train()
        return [b - a for a, b in pairwise(ends)], trainer.state.log_history[0]["loss"]


PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


def profiled(side: Ours | Theirs) -> dict[str, float]:
    """Seconds of a turn in all, and those within dense products and attention's kernel, both ways."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        side.turn()
    told = {"all": 0.0, "products": 0.0, "attention": 0.0}
    for row in seen.key_averages():
        told["all"] += row.self_cpu_time_total / 1e6
        kind = "products" if row.key in PRODUCTS else "attention" if "flash_attention" in row.key else None
        if kind:
            told[kind] += row.self_cpu_time_total / 1e6
    return told


def main() -> None:
    order = arguments()
    torch.set_num_threads(order.threads)
    book = Ledger(order.ledger) if order.ledger else None
    with tempfile.TemporaryDirectory(prefix="lithe-lora-") as home:
        target = prepare(order.model, Path(home), ["Once upon a time there was a house."])
        # One token more than a row: ours foretells `length` of them, theirs one fewer, so it is given the longer row
        dice = np.random.default_rng(0)
        rows = [dice.integers(target.config.vocab, size=order.length + 1) for _ in range(order.rows * (order.steps + 1))]
        examples = of_ids((row.tolist(), [True] * len(row)) for row in rows)
        sides = {"lithe": Ours(target.folder, examples, order), "peft": Theirs(target.folder, examples, order)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        losses: dict[str, list[float]] = {name: [] for name in sides}
        before = quiet.listen()
        for number in range(order.rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                found, loss = sides[name].turn()
                seconds[name].append(median(found[1:]))
                losses[name].append(loss)
                print(f"{name}: {order.rows * order.length / seconds[name][-1]:.0f} tokens/s, loss {loss:.4f}", flush=True)
        calm = quiet.worse(before, quiet.listen())
        profiles = {name: profiled(side) for name, side in sides.items()}
    columns = np.array([seconds["peft"]]), np.array([seconds["lithe"]])
    ratio = lambda a, b: np.median(a / b, axis=(-2, -1))
    told = {"seconds": seconds, "first_loss": losses, "tokens": order.rows * order.length, "disturbed": calm.disturbed,
            "tokens_per_s": {name: order.rows * order.length / median(found) for name, found in seconds.items()},
            "profile": profiles, "ratio": float(ratio(*columns)), "interval": stats.interval(ratio, *columns)}
    print(json.dumps(told, indent=1))
    if book is not None:
        ours = sides["lithe"].model
        ours.folder, ours.source = None, order.model
        versions = {name: sys.modules[name].__version__ for name in ("peft", "transformers")}
        book.append(provenance.record(
            "lora-speed", ours, measured=told | versions, inputs=[row.tolist() for row in rows], method=SPEC, seed=0,
            settings={name: value for name, value in vars(order).items() if name not in ("ledger", "model", "clock")}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a folder, zoo:NAME, or shape:135m")
    for name, default in (("rows", 4), ("length", 128), ("rounds", 5), ("steps", 3), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ledger")
    parser.add_argument("--cpu", action="store_true", help="count a single thread's processor seconds, without waiting")
    order = parser.parse_args()
    if order.cpu and order.threads != 1:
        parser.error("--cpu counts one thread: give --threads 1")
    order.clock = time.process_time if order.cpu else time.perf_counter
    return order


if __name__ == "__main__":
    main()
