"""Tuned while pruned on a domain of its own, Python: ATP beside cutting first and as many steps of tuning. A JSON line a seed.

    python tools/compression_domain.py MODEL MBPP [--seeds 0 1 2] [--steps 200] [--ratio 0.4] [--held_out 200]

MBPP's file of problems; of their programs the last so many are held out, the others are what is tuned on. Nats a token above
the dense model's, whose loss is told, and the gain with a 95 % interval over programs.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lithe.bench.compress._rows import crossed
from lithe.bench.compress._score import Documents
from lithe.compress import calibrate
from lithe.compress.run import compress
from lithe.model.decoder import Decoder
from lithe.model.load import load

LENGTH, CONTEXT, TOKENS = 128, 64, 131072


def split(mbpp: Path, folder: Path, held_out: int) -> tuple[Path, Path]:
    """Programs to tune on, and those held out, as files of rows."""
    with gzip.open(mbpp, "rt") as file:
        programs = [json.loads(line)["code"].replace("\r\n", "\n") for line in file]
    parts = {"own": programs[:-held_out], "held": programs[-held_out:]}
    for name, some in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return folder / "own.jsonl", folder / "held.jsonl"


def run(dense: Decoder, own: Path, documents: Documents, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    text = calibrate.read(own, dense, length=LENGTH, tokens=TOKENS, seed=seed)
    tuned = f"recover=cfsp:even=true,rank=8,steps={given.steps},rate=3e-3"
    ways = {"tuned alone": [tuned], "cut, then tuned": [f"wanda_sp:unit=width,ratio={given.ratio}", tuned],
            "atp": [f"atp:ratio={given.ratio},steps={given.steps},rate=3e-3"]}
    before = documents.score(dense)
    found = {name: documents.score(compress(dense, steps, text, seed=seed).model) for name, steps in ways.items()}
    gain_P1 = (np.array(found["cut, then tuned"]["nats"]) - np.array(found["atp"]["nats"]))[:, None]
    tokens_P1 = np.array(before["tokens"], dtype=np.float64)[:, None]
    low, high = crossed(gain_P1, tokens_P1)
    return {"seed": seed, "steps": given.steps, "ratio": given.ratio, "tokens": text.tokens, "dense": round(before["loss"], 4),
            **{name: round(score["loss"] - before["loss"], 4) for name, score in found.items()},
            "atp gains": [round(value, 4) for value in (float(gain_P1.sum() / tokens_P1.sum()), low, high)]}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model")
    asked.add_argument("mbpp", type=Path)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--steps", type=int, default=200)
    asked.add_argument("--ratio", type=float, default=0.4)
    asked.add_argument("--held_out", type=int, default=200)
    given = asked.parse_args()
    dense = load(given.model, dtype="float32", fast=False)
    with TemporaryDirectory() as folder:
        own, held = split(given.mbpp, Path(folder), given.held_out)
        documents = Documents(dense, held, given.held_out, CONTEXT)
        for seed in given.seeds:
            print(json.dumps(run(dense, own, documents, given, seed)), flush=True)


if __name__ == "__main__":
    main()
