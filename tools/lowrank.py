"""What the low-rank methods' papers ask beside the ledger's cells: one JSON line each.

    python tools/lowrank.py MODEL ranks TEXT            one threshold for all ranks, and the same share of each, at equal ranks
    python tools/lowrank.py MODEL transfer TEXT OTHER   all weights of the healed and of the dense model tuned on another text
    python tools/lowrank.py 576x1536 rows               time of a structured layer of so many inputs and outputs

TEXT, OTHER: .jsonl or .txt, either .gz.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise, product
from typing import Any

import torch
from learned import learn

from lithe.compress import calibrate
from lithe.compress.calibrate import Calibration
from lithe.compress.fitness import nll
from lithe.compress.mixture import parse
from lithe.compress.pairs import nearest
from lithe.compress.run import Stage, compress
from lithe.compress.surgery import copied
from lithe.model.decoder import Decoder
from lithe.model.load import load

HEALING = ["pela:ratio=0.3333", "recover=pela:steps=400,rate=1e-3"]
LENGTH, RATES = 128, (3e-4, 1e-3)


def ranks(model: Decoder, text: Calibration, share: float) -> dict[str, Any]:
    """The loss with the ranks that one threshold leaves, and with as many shared out alike."""
    stage = Stage(copied(model), parse(f"welore:ratio={share},by=ranks"), text, 0, lambda *_: None, None, 0, 2)
    plan = stage.allocate()
    units = {group.name: group.units for group in stage.groups}
    kept = {name: units[name] if level is None else int(level) for name, level in plan.levels.items()}
    left = sum(kept.values())
    alike = {name: int(left / sum(units.values()) * count) for name, count in units.items()}
    for name in list(alike)[: left - sum(alike.values())]:
        alike[name] += 1
    found = {"share": share, "tau": round(plan.notes["tau"], 4), "ranks": [left, sum(units.values())],
             "pairs": plan.notes["pairs"], "of": len(units)}
    for name, levels in (("one_threshold", kept), ("alike", alike)):
        work = copied(model)
        for site, rank in levels.items():
            module: Any = work.get_submodule(site)
            a_RK, b_NR = nearest(module.weight.detach(), rank)
            module.weight.data = b_NR @ a_RK if rank < units[site] else module.weight.data
        found[name] = round(nll(work, text), 4)
    return found | {"dense": round(nll(model, text), 4)}


def tuned(model: Decoder, text: Calibration, steps: int, rate: float) -> tuple[Decoder, float]:
    """All weights tuned on a text, and the median seconds of a step."""
    work, marks = copied(model), [time.perf_counter()]
    for weight in work.parameters():
        weight.requires_grad_(True)
    learn(work, text, steps, rate, each=lambda: marks.append(time.perf_counter()))
    return work, statistics.median(b - a for a, b in pairwise(marks))


def transfer(model: Decoder, text: str, other: str, steps: int, seed: int) -> dict[str, Any]:
    """What tuning takes off the loss of another text, from the dense model's loss on: the healed model's share of it."""
    read = lambda path, tokens, number: calibrate.read(path, model, length=LENGTH, tokens=tokens, seed=number)
    healed = compress(model, HEALING, read(text, 131072, seed), seed=seed).model
    learned, judged = read(other, 131072, seed).batches, read(other, 160000, seed).batches
    learn, judge = Calibration(learned), Calibration(judged[len(learned):])  # one text, its end held out
    found: dict[str, Any] = {"seed": seed, "steps": steps, "judged": judge.tokens, "dense": nll(model, judge),
                             "healed": nll(healed, judge)}
    for (name, start), rate in product((("dense", model), ("healed", healed)), RATES):
        work, each = tuned(start, learn, steps, rate)
        found |= {f"{name}_tuned_{rate:g}": nll(work, judge), f"{name}_ms": 1000 * each}
    best = {name: min(value for key, value in found.items() if key.startswith(f"{name}_tuned")) for name in ("dense", "healed")}
    found["gain"] = (found["dense"] - best["healed"]) / (found["dense"] - best["dense"])
    found["values"] = [sum(w.numel() for w in one.parameters()) for one in (model, healed)]
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


@torch.no_grad()
def rows(inputs: int, outputs: int, counts: tuple[int, ...] = (1, 16, 128), turns: int = 200) -> dict[str, Any]:
    """Medians over turns of milliseconds, the ways one after another in each turn: the whole matrix, which is what a product
    merged for decoding is, and products of a third of its weights."""
    from lithe.compress.factorize.structured_ffn import dense, shuffled
    from lithe.model.blocks import of_pair

    weight_NK = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * inputs**-0.5
    whole = torch.nn.Linear(inputs, outputs, bias=False)
    whole.weight.data = weight_NK
    rank = lambda g: int(0.32 * weight_NK.numel() / (inputs / g + outputs)) // g * g
    ways: dict[str, Any] = {"whole": whole, "low_rank": of_pair(*dense(weight_NK, rank(1), 1), None),
                            "block_dense, 4": of_pair(*dense(weight_NK, rank(4), 4), None),
                            "block_shuffle, 4": of_pair(*shuffled(weight_NK, 4), None)}
    found: dict[str, Any] = {"shape": [inputs, outputs], "threads": torch.get_num_threads()}
    found["values"] = {name: sum(w.numel() for w in way.parameters()) for name, way in ways.items()}
    for count in counts:
        x, marks = torch.randn(count, inputs), {name: [] for name in ways}  # type: ignore[var-annotated]
        for _ in range(turns + 5):
            for name, way in ways.items():
                began = time.perf_counter()
                way(x)
                marks[name].append(time.perf_counter() - began)
        found[f"ms_{count}"] = {name: round(1000 * statistics.median(seconds[5:]), 4) for name, seconds in marks.items()}
    return found


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("model")
    ask.add_argument("what", choices=("ranks", "transfer", "rows"))
    ask.add_argument("texts", nargs="*")
    ask.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7])
    ask.add_argument("--tokens", type=int, default=8192)
    ask.add_argument("--steps", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args()
    if asked.what == "rows":
        inputs, outputs = map(int, asked.model.split("x"))
        print(json.dumps(rows(inputs, outputs)), flush=True)
        return
    model = load(asked.model, dtype="float32", fast=False)
    if asked.what == "transfer":
        print(json.dumps(transfer(model, *asked.texts[:2], asked.steps, asked.seed)), flush=True)
        return
    text = calibrate.read(asked.texts[0], model, length=LENGTH, tokens=asked.tokens, seed=asked.seed)
    for share in asked.shares:
        print(json.dumps({"model": asked.model, "tokens": text.tokens, **ranks(model, text, share)}), flush=True)


if __name__ == "__main__":
    with torch.random.fork_rng():
        main()
