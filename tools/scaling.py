"""The laws of tokens a pass by tokens read and by weights, swept on a target: prints points, fits and the tree for each batch.

python tools/scaling.py --data FILE [--model zoo:tiny-draft] [--steps 20 40 80 160 320] [--layers 1 2 4] [--out FILE]
                        [--ledger FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lithe import registry
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.bench.scaling import LogLaw, held_out, log_law, pick, tokens_a_pass
from lithe.cli._common import open_model
from lithe.model import corpus
from lithe.model.runtime import stored
from lithe.train.learn import Lesson, learn

NODES, BATCHES, SIZES = 8, (1, 2, 4, 8), range(1, 33)


def point(model, ids, spec: str, steps: int, rows: int, length: int) -> dict:
    """One draft fitted from nothing; its weights without the output matrix, which all sizes share."""
    made = registry.parse(spec)
    lesson = Lesson(steps=steps, rows=rows, length=length, warmup=max(1, steps // 10))
    fitted = learn(made.entry, made.knobs, model, ids, lesson, quiet=True)
    weights = sum(w.numel() for name, w in fitted.module.named_parameters() if w.requires_grad and name != "output")
    return {"spec": spec, "tokens": steps * rows * length, "weights": weights, "rates": fitted.rates,
            "tau": tokens_a_pass(fitted.rates, NODES)}


def told(name: str, points: list[dict], of: str) -> LogLaw:
    xs, taus = [p[of] for p in points], [p["tau"] for p in points]
    law = log_law(xs, taus)
    print(f"{name}: tau = {law.a:.3f} + {law.b:.4f} ln {of}; R2 {law.r2:.3f}; left out, missed by {law.missed:.1%} at most; "
          f"the largest, by {held_out(xs, taus, len(xs) - 1):+.1%}", flush=True)
    return law


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="zoo:tiny-draft")
    parser.add_argument("--method", default="draft/eagle3:steps=1,depth=4,rate=2e-3", help="a draft with a knob layers")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 40, 80, 160, 320])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ledger", type=Path)
    options = parser.parse_args()
    model = open_model(options.model, fast=False)
    ids = corpus.load(options.data, model.tokenizer).ids
    found: dict[tuple[int, int], dict] = {}
    middle = options.steps[len(options.steps) // 2]
    for layers, steps in [*((options.layers[0], s) for s in options.steps), *((n, middle) for n in options.layers[1:])]:
        one = point(model, ids, f"{options.method},layers={layers}", steps, options.rows, options.length)
        found[layers, steps] = one
        print(f"{layers} layers, {one['tokens']:,} tokens, {one['weights']:,} weights: {one['tau']:.3f} a pass", flush=True)
        if options.out:
            options.out.write_text(json.dumps(list(found.values()), indent=1) + "\n", encoding="utf-8")
    laws = {"tokens": told("by tokens read", [found[options.layers[0], s] for s in options.steps], "tokens"),
            "weights": told("by weights", [found[n, middle] for n in options.layers], "weights")}
    fast = open_model(options.model)
    if options.ledger:
        points = [{name: value for name, value in one.items() if name != "rates"} for one in found.values()]
        measured = {"points": points} | {name: asdict(law) for name, law in laws.items()}
        settings = {"rows": options.rows, "length": options.length, "nodes": NODES}
        Ledger(options.ledger).append(record("scaling", fast, measured=measured, inputs=options.steps, settings=settings,
                                             seed=0, method=options.method))
    known = stored(fast)
    curve = known and known.curves.get(fast.threads)
    if curve is None:
        print(f"no cost curve of {options.model} is stored: lithe env {options.model} measures it")
        return
    rates = found[options.layers[0], options.steps[-1]]["rates"]
    share = options.layers[0] / fast.config.layers  # a layer of the draft costs what one of the target does
    for batch in BATCHES:
        best = pick(batch, lambda n: tokens_a_pass(rates, n), curve.seconds, lambda rows: share * curve.seconds(rows),
                    passes=len(rates), sizes=SIZES)
        print(f"batch {batch}: {best.nodes} guesses pay, {best.speed:.0f} tokens a second promised")


if __name__ == "__main__":
    main()
