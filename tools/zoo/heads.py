"""Fit the heads that the zoo ships for `tiny`, and store them small.

    tools/zoo/heads.py [METHOD ...]      into lithe/zoo/heads; an hour in all, and the same command goes on where it stopped

They learn from what the target writes (written.py): behind pieces of free text, which is public-domain books and plays, GSM8K
(MIT) and the sources of Python's library, and by itself.
"""

import shutil
import sys
from pathlib import Path

import corpus
import numpy as np
import written
from tokens import encode

import lithe
from lithe import registry
from lithe.decode import drafter
from lithe.decode.drafter import Recipe
from lithe.model.load import ZOO
from lithe.train import fitted
from lithe.train.learn import Lesson, learn

TARGET, SMALL = "zoo:tiny", 2_000_000  # bytes: larger ones are made, not shipped
MIXTURE = {"books_children": 220_000, "maths": 110_000, "python": 70_000, "books_general": 60_000, "plays": 15_000}  # tokens
ROWS = 1024  # that the target writes
PIECE = 2000  # tokens of one source that stay together
HEADS = {  # spec, steps of 4 rows of 256 tokens; -small: without some part, so that it can be shipped in the other's place
    "eagle": ("eagle:rate=1e-3", 800),
    "hydra": ("hydra:depth=3,own=false,teacher=true,rate=1e-3", 800),
    "medusa": ("medusa:depth=3,own=false,rate=1e-3", 300),
    "kangaroo": ("kangaroo:layers=2,rate=1e-3", 800),
    "ppd": ("ppd:rate=0.02", 200),
    "hydra-pp": ("hydra:depth=3,layers=4,prefix=true,own=false,teacher=true,rate=1e-3", 800),
    "hidden_transfer": ("hidden_transfer:rate=1e-3", 400),
    "clover": ("clover:rate=1e-3", 200),
    "clover-small": ("clover:augment=0,depth=4,rate=1e-3", 300),
    "chimera": ("chimera:own=false,roll=2,rate=1e-3", 120),
    "chimera-small": ("chimera:own=false,trigram=false,roll=2,rate=1e-3", 300),
    "fspad": ("fspad:rate=1e-3", 300),
    "gad": ("gad:tokens=6,rate=2e-3", 300),
    "gad-small": ("gad:tokens=6,layers=1,rate=2e-3", 400),
    "specdec_pp": ("specdec_pp:temperature=0,rate=1e-3", 300),  # whether the two agree on the likeliest token
    "specdec_pp-kangaroo": ("specdec_pp:draft=kangaroo,temperature=0,rate=1e-3", 100),
}
SORTED = "s2d"  # a draft with exits inside, a model of its own
EXITS = Recipe(start="zoo:tiny-draft", exits="1/2/3", pretrain=150, align=0, rate=1e-3, rows=4)
WORK = Path(".lithe") / "heads"


def main(names: list[str]) -> None:
    target = lithe.load(TARGET, fast=False)
    ids = written.lesson(target, free_text(target.tokenizer), ROWS, WORK / "written")
    for name in names or (*HEADS, SORTED):
        if name == SORTED:
            if not (WORK / SORTED / "config.json").is_file():
                drafter.make(target, ids, EXITS, WORK / SORTED)
            continue
        text, steps = HEADS[name]
        spec = registry.parse(text)
        if not (WORK / name / fitted.NOTES).is_file():
            learn(spec.entry, spec.knobs, target, ids, Lesson(steps=steps, rows=4, length=written.LENGTH, warmup=20),
                  folder=WORK / name, states=written.states(WORK / "written", ROWS))
        ship(WORK / name, ZOO / "heads" / name.removesuffix("-small"))


def free_text(tokenizer) -> np.ndarray:
    """So many tokens of each source, in pieces that are mixed, so that any beginning is a mixture too."""
    if (kept := WORK / "text.npy").is_file():
        return np.load(kept)
    dice, pieces = np.random.default_rng(0), []
    for name, split in corpus.sources().items():
        if wanted := MIXTURE.get(name):
            ids = drawn(tokenizer, split.train, wanted, dice)
            pieces += [ids[at : at + PIECE] for at in range(0, min(wanted, len(ids)), PIECE)]
    text = np.concatenate([pieces[i] for i in dice.permutation(len(pieces))]).astype(np.int32)
    WORK.mkdir(parents=True, exist_ok=True)
    np.save(kept, text)
    return text


def drawn(tokenizer, documents: list[str], tokens: int, dice: np.random.Generator) -> np.ndarray:
    """Ids of whole documents drawn by chance: at least so many, or all there are."""
    texts, ids = [documents[i] for i in dice.permutation(len(documents))], np.zeros(0, np.uint16)
    while len(ids) < tokens and texts:
        ids = np.concatenate([ids, encode(tokenizer.backend, [texts.pop()])])
    return ids


def ship(made: Path, out: Path) -> None:
    """A copy in eight bits, where that is small."""
    size = fitted.shrink(made, WORK / f"{made.name}-small")
    if size > SMALL:
        print(f"{made} has {size / 1e6:.1f} MB: used from there, not shipped")
        return
    shutil.copytree(WORK / f"{made.name}-small", out, dirs_exist_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
