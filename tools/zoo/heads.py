"""Fit the heads that the zoo ships for `tiny`, and store them in bfloat16.

    tools/zoo/heads.py [METHOD ...]      into lithe/zoo/heads; minutes each, and the same command goes on where it stopped

They learn from free text alone: public-domain books and plays, GSM8K (MIT) and the sources of Python's library.
"""

import sys
from pathlib import Path

import corpus
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokens import encode

import lithe
from lithe import registry
from lithe.model.load import ZOO
from lithe.train.fitted import NOTES, WEIGHTS
from lithe.train.learn import Lesson, learn

TARGET, SMALL = "zoo:tiny", 2_000_000  # bytes: larger ones are made, not shipped
MIXTURE = {"books_children": 220_000, "maths": 110_000, "python": 70_000, "books_general": 60_000, "plays": 15_000}  # tokens
PIECE = 2000  # tokens of one source that stay together
HEADS = {  # spec, steps of 8 rows of 128 tokens
    "medusa": ("medusa:own=false,rate=1e-3", 100),
    "kangaroo": ("kangaroo:rate=1e-3", 100),
    "ppd": ("ppd:rate=0.02", 100),
    "clover": ("clover:rate=1e-3", 80),
    "hydra": ("hydra:own=false,rate=1e-3", 120),
    "eagle": ("eagle:rate=1e-3", 120),
}
WORK = Path(".lithe") / "heads"


def main(names: list[str]) -> None:
    target = lithe.load(TARGET, fast=False)
    ids = lesson(target.tokenizer)
    for name in names or HEADS:
        text, steps = HEADS[name]
        spec = registry.parse(text)
        made = learn(spec.entry, spec.knobs, target, ids, Lesson(steps=steps, rows=8, length=128, warmup=10, keep=True),
                     folder=WORK / name)
        print(f"{name}: right at depth 1, 2, ...: {', '.join(f'{row[0]:.0%}' for row in made.rates)}")
        ship(WORK / name, ZOO / "heads" / name)


def lesson(tokenizer) -> np.ndarray:
    """So many tokens of each source, in pieces that are mixed, so that any beginning is a mixture too."""
    dice, pieces = np.random.default_rng(0), []
    for name, split in corpus.sources().items():
        texts = [split.train[i] for i in dice.permutation(len(split.train))] if name in MIXTURE else []
        wanted, ids = MIXTURE.get(name, 0), np.zeros(0, np.uint16)
        while len(ids) < wanted and texts:
            ids = np.concatenate([ids, encode(tokenizer.backend, [texts.pop()])])
        pieces += [ids[at : at + PIECE] for at in range(0, min(wanted, len(ids)), PIECE)]
    return np.concatenate([pieces[i] for i in dice.permutation(len(pieces))]).astype(np.int32)


def ship(made: Path, out: Path) -> None:
    """A copy in half the size, where that is small."""
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(made / WEIGHTS).items()}
    size = sum(2 * value.numel() for value in weights.values())
    if size > SMALL:
        print(f"{made} has {size / 1e6:.1f} MB: used from there, not shipped")
        return
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / WEIGHTS)
    (out / NOTES).write_bytes((made / NOTES).read_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
