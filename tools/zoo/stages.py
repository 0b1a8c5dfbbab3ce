"""FastDraft's stages for `tiny`, one by one, as docs/log/decode/drafter.md has them: fresh drafts, then what each stage makes.

    tools/zoo/stages.py [SEED ...]      into .lithe/heads/fast; six minutes a seed; goes on where it stopped

All drafts of a seed begin as text-SEED, which read text without programs: aligned-SEED goes on with what tiny wrote behind
openings, human-SEED with how the same texts really go on, code-SEED with programs, more-SEED with more of the text. fresh read
nothing; wide and deep are as many weights in one layer and in 17. Needs the lesson of heads.py.
"""

import sys
from pathlib import Path

import corpus
import heads
import numpy as np
import written

import lithe
from lithe.decode import drafter
from lithe.decode.drafter import Recipe

FAST = heads.WORK / "fast"
FIRST = {"pretrain": 300, "align": 0, "rows": 8}
THEN = FIRST | {"pretrain": 120, "rate": 1e-3, "keep": 3}
STAGES = {"aligned": "said", "human": "human", "code": "code", "more": "text"}


def main(seeds: list[int]) -> None:
    target = lithe.load(heads.TARGET, fast=False)
    free = heads.free_text(target.tokenizer)
    written.lesson(target, free, heads.ROWS, heads.WORK / "written")
    ids = texts(target.tokenizer, free)
    make(target, ids["text"], FAST / "fresh", FIRST | {"pretrain": 1, "rate": 0.0})
    for seed in seeds:
        first = FAST / f"text-{seed}"
        make(target, ids["text"], first, FIRST | {"seed": seed})
        for name, text in STAGES.items():
            make(target, ids[text], FAST / f"{name}-{seed}", THEN | {"start": str(first), "seed": seed})
    for name, layers, width in (("wide", 1, 192), ("deep", 17, 64)):
        make(target, ids["text"], FAST / name, FIRST | {"layers": layers, "width": width})


def make(target, ids: np.ndarray, folder: Path, recipe: dict) -> None:
    if not (folder / "config.json").is_file():
        drafter.make(target, ids, Recipe(**recipe), folder)


def texts(tokenizer, free: np.ndarray) -> dict[str, np.ndarray]:
    said, human = openings(tokenizer, free)
    sources, dice = corpus.sources(), np.random.default_rng(1)

    def some(name: str, tokens: int) -> np.ndarray:
        return heads.drawn(tokenizer, sources[name].train, tokens, dice)[:tokens].astype(np.int32)

    def mixed(parts: list[np.ndarray]) -> np.ndarray:
        pieces = [part[at : at + heads.PIECE] for part in parts for at in range(0, len(part), heads.PIECE)]
        return np.concatenate([pieces[i] for i in dice.permutation(len(pieces))])

    plain = [some(name, tokens) for name, tokens in heads.MIXTURE.items() if name != "python"]
    text, programs = mixed(plain), some("python", 200_000)
    return {"said": said, "human": human, "text": text, "code": mixed([programs, mixed(plain)[:100_000]])}


def openings(tokenizer, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the lesson that go on from a text, and as much of the texts themselves."""
    said, human = [], []
    for part in range(heads.ROWS // written.BATCH):
        ids, dice = np.load(heads.WORK / "written" / f"{part}.npz")["ids"], np.random.default_rng(part)
        for b in range(written.BATCH):
            if b % 2 == 1:  # one that the target began; it took its draw
                written.begin(tokenizer, free, dice, own=True)
                continue
            at = int(dice.integers(len(free) - written.GIVEN))
            if at + written.LENGTH <= len(free):
                said.append(ids[b])
                human.append(free[at : at + written.LENGTH])
    return np.concatenate(said).astype(np.int32), np.concatenate(human).astype(np.int32)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [0, 1, 2])
