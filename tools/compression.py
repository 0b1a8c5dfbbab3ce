"""Cells of compression: steps on a model and on its twin with outlier channels, one JSON line each.

    python tools/compression.py MODEL CALIBRATION.jsonl.gz prune [--tokens 8192] [--plain]
"""

from __future__ import annotations

import argparse
import json
import time

from lithe.compress import calibrate
from lithe.compress.fitness import Fitness, nll
from lithe.compress.rescale import outliers
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.model.load import load

SUITES = {
    "channels": [f"{name}:unit=channel,ratio={p}{more}" for p in (0.2, 0.4, 0.6)
                 for name, more in (("magnitude_pruning", ""), ("wanda_sp", ""), ("importance=flap", ""), ("flap", ""),
                                    ("importance=cfsp", ""), ("importance=cfsp", ",norm=channel"), ("cfsp", ""))],
    "entries": [f"{name}:ratio={p}{more}" for p in (0.5, 0.6, 0.7)
                for name, more in (("magnitude_pruning", ""), ("wanda", ""), ("sparsegpt", ""), ("dsnot", ""),
                                   ("dsnot", ",skip_mlp=false"), ("dsnot", ",skip_mlp=false,guard=hessian"))],
    "patterns": [f"{name}:pattern={p}" for p in ("2:4", "4:8")
                 for name in ("magnitude_pruning", "wanda", "sparsegpt", "dsnot")],
    "bits": [f"{name}:bits={b}{more}" for b in (2, 3, 4)
             for name, more in (("rtn", ""), ("gptq", ""), ("adaquant", ",steps=200"))],
    "rows": ["wanda_sp:unit=channel,ratio=0.4", "flap:unit=channel,ratio=0.4", "cfsp:ratio=0.4", "rtn:bits=4", "gptq:bits=4",
             "wanda:ratio=0.6", "dsnot:ratio=0.6", "sparsegpt:ratio=0.6"],
    "depth": [f"shortgpt:ratio=0.4,unit=half{more}" for more in (
        "", " + evopress:generations=10,children=8,survivors=2+1,tokens=1024+4096")],
    "mixed": [f"gptq:bits=2.75,group=-1,levels=2+3+4,count=nominal{more}" for more in (
        "", " + integer_program", " + integer_program:reverse=true",
        " + evopress:generations=20,children=16,survivors=4+1,tokens=1024+4096")],
}


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("model")
    read.add_argument("calibration")
    read.add_argument("suite", help=f"one of {', '.join(SUITES)}, or a step")
    read.add_argument("--tokens", type=int, default=8192)
    read.add_argument("--length", type=int, default=256)
    read.add_argument("--seeds", type=int, default=1)
    read.add_argument("--plain", action="store_true", help="no twin")
    asked = read.parse_args()
    model = load(asked.model, fast=False)
    # the first half of the rows calibrates (by seed), the last is what counts
    text = calibrate.read(asked.calibration, model, length=asked.length, tokens=10**9)
    rows = [row for batch in text.batches for row in batch["ids_BT"]]
    count = asked.tokens // len(rows[0])
    judge = calibrate.of_ids([i for row in rows[-count:] for i in row.tolist()], length=len(rows[0]))
    models = {"plain": model} if asked.plain else {"plain": model, "twin": outliers(copied(model))}
    fitness, base = Fitness(model, judge, top=model.config.vocab), nll(model, judge)
    print(json.dumps({"nll": base, "tokens": judge.tokens}), flush=True)
    for text in SUITES.get(asked.suite, [asked.suite]):  # type: ignore[assignment]
        for seed in range(asked.seeds):
            part = rows[seed * count : (seed + 1) * count]
            learn = calibrate.of_ids([i for row in part for i in row.tolist()], length=len(rows[0]))
            for name, one in models.items():
                began = time.monotonic()
                found = compress(one, text.split(" ; "), learn, seed=seed, item=2)
                made = found.model.float() if "bits" not in text else found.model
                print(json.dumps({"step": text, "on": name, "seed": seed, "kl": round(fitness(made), 5),
                                  "more_nll": round(nll(made, judge) - base, 5), "seconds": round(time.monotonic() - began, 1),
                                  "share": round(found.allocations[-1].cost / found.allocations[-1].full, 4)}), flush=True)


if __name__ == "__main__":
    main()
