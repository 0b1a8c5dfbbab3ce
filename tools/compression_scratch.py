"""Masks, shared weights and products from the first step of training on: a ledger record a run (suite "scratch").

    python tools/compression_scratch.py TEXT HELD_OUT --ledger docs/ledger-compress.jsonl [--ways 1:4] [--seeds 0 1 2]

A byte model (3 layers of width 96, `tools/sharing.py`) from drawn weights. TEXT, HELD_OUT: .jsonl or .txt, either .gz. What the
ledger holds is not run again. --ways: those whose names hold this. --steps: other than 300 are told in the record's name.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from sharing import SHAPE, fresh, read, trained

from lithe.bench import provenance
from lithe.bench.ledger import Ledger
from lithe.compress.calibrate import Calibration
from lithe.compress.mixture import parse
from lithe.compress.run import compress
from lithe.model.decoder import ALL, Decoder

SUITE, USUAL = "scratch", 300
TRAIN = "steps={steps},rate={rate}"
THIRD = "sites=mlp.*,ratio="  # of the FFNs' weights gone: what products leave is 32 %, 36 % of BlockShuffle's


def products(name: str, form: str, ratio: float) -> dict[str, str]:
    """FFNs of products: drawn as the paper does, so and guided, guided in some passes, and of random factors."""
    kinds = {"": ("fresh", "guided=0"), ", guided": ("fresh", "guided=0.5"), ", random factors": ("random", "guided=0"),
             ", guided, saving": ("fresh", "guided=0.5,saving=true")}
    return {f"{name}{how}": f"factorize=structured_ffn:{form},start={start},{THIRD}{ratio} ; "
            f"recover=structured_ffn:{guide},{TRAIN}" for how, (start, guide) in kinds.items()}


WAYS = {  # how a model is trained, and what is done to it then
    "dense": "",
    "dense, a quarter of the weights": "",
    "dense, then cut to 1:4": "magnitude_pruning:pattern=1:4",
    "straight-through, 1:4": f"recover=sr_ste:pattern=1:4,strength=0,{TRAIN}",
    "sr-ste, 1:4": f"recover=sr_ste:pattern=1:4,{TRAIN}",
    "sr-ste, 1:4, a tenth of the pull": f"recover=sr_ste:pattern=1:4,strength=1,{TRAIN}",
    "sr-ste, 1:4, in the gradient": f"recover=sr_ste:pattern=1:4,form=gradient,strength=2e-4,{TRAIN}",
    **{f"{name}, FFN {pattern}": step.format(pattern=pattern) + TRAIN for pattern in ("1:8", "1:32") for name, step in (
        ("straight-through", "recover=sr_ste:pattern={pattern},sites=mlp.*,strength=0,"),
        ("sr-ste", "recover=sr_ste:pattern={pattern},sites=mlp.*,"),
        ("progressive gradient flow", "progressive_gradient_flow:pattern={pattern},"))},
    "gone at once, 80 %": f"recover=fast_sparse:ratio=0.8,start=0,end=0,{TRAIN}",
    "fast sparse, 80 %": f"recover=fast_sparse:ratio=0.8,every=20,{TRAIN}",
    "dense, a fifth of the weights": "",
    "dense, a tenth of the weights": "",
    "folded, 4x": f"recover=stable_rps:times=4,start=drawn,{TRAIN}",
    "hashed, 4x": f"recover=stable_rps:times=4,map=hash,start=drawn,{TRAIN}",
    "folded, 10x": f"recover=stable_rps:times=10,start=drawn,{TRAIN}",
    "hashed, 10x": f"recover=stable_rps:times=10,map=hash,start=drawn,{TRAIN}",
    "dense, FFN of a third": "",
    **products("low rank", "form=low_rank", 0.68),
    **products("block dense", "form=block_dense,blocks=4", 0.68),
    **products("block shuffle", "form=block_shuffle", 0.64),
    **{f"wide, {way}": step for way, step in (
        products("low rank", "form=low_rank", 0.68) | products("block dense", "form=block_dense,blocks=4", 0.68)).items()
       if way.endswith(("rank", "dense", ", guided"))},
}
WIDE = SHAPE.replace(width=144, ffn=368)  # attention as narrow as before: with FFNs of a third the dense model's products
SHAPES = {  # as many values as what they are beside, embeddings among them
    "dense, a quarter of the weights": SHAPE.replace(width=48, ffn=128),
    "dense, a fifth of the weights": SHAPE.replace(width=40, ffn=136),
    "dense, a tenth of the weights": SHAPE.replace(width=32, ffn=104),
    "dense, FFN of a third": SHAPE.replace(ffn=82), **{way: WIDE for way in WAYS if way.startswith("wide")}}


def start(way: str, seed: int) -> Decoder:
    return fresh(seed, SHAPES.get(way, SHAPE))


@torch.inference_mode()
def rows(model: Decoder, judge: Calibration) -> dict[str, Any]:
    """Nats and bytes of each row of the held-out text, and their mean."""
    nats, counts = [], []
    for batch in judge.batches:
        for row in batch["ids_BT"]:
            laws = model(row[None, :-1], logits=ALL).scores[0].log_softmax(-1)
            nats.append(round(-float(laws.gather(-1, row[1:, None]).sum()), 4))
            counts.append(len(row) - 1)
    return {"loss": sum(nats) / sum(counts), "nats": nats, "tokens": counts}


def run(way: str, text: Calibration, judge: Calibration, seed: int, steps: int, rate: float) -> tuple[dict[str, Any], list]:
    """What came out, and the methods that did it."""
    model, began = start(way, seed), time.process_time()
    chain = [step for step in WAYS[way].format(steps=steps, rate=rate).split(" ; ") if step]
    notes: dict[str, Any] = {}
    if not any("recover" in step or "flow" in step for step in chain):
        model = trained(model, text, steps, rate)
    if chain:
        found = compress(model, chain, text, seed=seed)
        model, notes = found.model, found.report["steps"][0]
    kept = {name: notes[name] for name in ("mask_changes", "work") if name in notes}
    spent = {"cpu_seconds": round(time.process_time() - began, 1)}
    return rows(model, judge) | kept | spent, [part for step in chain for part in parse(step).parts]


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("text")
    ask.add_argument("held_out")
    ask.add_argument("--ledger", type=Path, required=True)
    ask.add_argument("--ways", default="")
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--steps", type=int, default=USUAL)
    ask.add_argument("--rate", type=float, default=3e-3)
    asked = ask.parse_args()
    text, judge, ledger = read(asked.text, 800 * asked.steps), read(asked.held_out, 24_576), Ledger(asked.ledger)
    shared = {"steps": asked.steps, "rate": asked.rate}
    long = "" if asked.steps == USUAL else f", {asked.steps} steps"
    done = {(r.method, r.seed, *shared.values()) for r in ledger.read()
            if r.suite == SUITE and all(r.settings[name] == value for name, value in shared.items())}
    for seed in asked.seeds:
        for way in (way for way in WAYS if asked.ways in way and (way + long, seed, *shared.values()) not in done):
            found, parts = run(way, text, judge, seed, asked.steps, asked.rate)
            model = start(way, seed)
            model.source = f"bytes of width {model.config.width}"
            ledger.append(provenance.record(SUITE, model, measured=found, inputs=[text.digest, judge.digest], seed=seed,
                                            method=way + long, settings={**shared, "step": WAYS[way]}, parts=parts))
            print(f"{way}{long}, seed {seed}: {found['loss']:.4f}, {found['cpu_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
