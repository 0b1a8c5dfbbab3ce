"""EvoPress beside the best of as many random plans of the same budget: a JSON line a seed.

    python tools/compression_drawn.py MODEL TEXT HELD_OUT [--plans 24] [--seeds 0 1 2]

GPTQ's 2, 3 and 4 bits, 3 on average. Random plans are judged as evolution's last stage judges, by KL on 4,096 tokens of the
calibration text; nats a token are of held-out documents. All plans' losses are told, so that one sees how rare a good one is.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import median
from unittest.mock import patch

from lithe.bench.compress._score import Documents
from lithe.compress import calibrate, solve
from lithe.compress.allocate import evopress
from lithe.compress.allocation import Problem
from lithe.compress.evolution import drawn
from lithe.compress.run import compress
from lithe.model.load import load
from lithe.model.narrow import widen

TOKENS, LENGTH, JUDGED = 8192, 256, 4096
STEP = f"gptq:bits=3,group=128,levels=2+3+4 + evopress:generations=10,children=8,survivors=2+1,tokens=1024+{JUDGED}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text", "held_out"):
        asked.add_argument(name)
    asked.add_argument("--plans", type=int, default=24)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = asked.parse_args()
    dense = load(given.model, dtype="float32", fast=False)
    documents = Documents(dense, Path(given.held_out), 200, 64)
    for seed in given.seeds:
        text = calibrate.read(given.text, dense, length=LENGTH, tokens=TOKENS, seed=seed)
        losses: list[float] = []

        def best(method: evopress.Method, problem: Problem, losses: list[float] = losses) -> dict:
            problem.check()
            dice = random.Random(problem.seed)
            plans = [solve.plan(problem, drawn(problem, dice)) for _ in range(given.plans)]
            losses += [problem.loss(plan, JUDGED) for plan in plans]
            return plans[losses.index(min(losses))]

        score = lambda text=text, seed=seed: documents.score(widen(compress(dense, [STEP], text, seed=seed).model))["loss"]
        line = {"seed": seed, "dense": documents.score(dense)["loss"], "evopress": score()}
        with patch.object(evopress.Method, "solve", best):
            line["best of random"] = score()
        line |= {"plans": given.plans, "kl least": min(losses), "kl median": median(losses)}
        print(json.dumps({name: round(value, 4) for name, value in line.items()}), flush=True)


if __name__ == "__main__":
    main()
