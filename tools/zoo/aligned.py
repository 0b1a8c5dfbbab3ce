"""A small model to draft for `tiny`: tiny-draft, taught the law of tiny on what tiny writes (FastDraft's second stage, longer).

    tools/zoo/aligned.py      into lithe/zoo/tiny-aligned; 80 minutes on one core; the same command goes on where it stopped

tiny goes on from openings of all sources of its corpus, train sides only: three parts of five greedily, one each at temperature
0.8 and 1. Of instructions, sums and programs the question is the opening, under the corpus's own cue or under "Answer:".
"""

import random
from functools import cache, partial
from pathlib import Path

import corpus
import numpy as np
import torch

import lithe
from lithe import __version__
from lithe.decode.drafter import Recipe, begin, following
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan
from lithe.model import checkpoint
from lithe.model.load import ZOO
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.train import fitted
from lithe.train.loop import Plan, fit
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.teacher import LOGITS, Teacher, Windows

TARGET, START, OUT, WORK = "zoo:tiny", "zoo:tiny-draft", ZOO / "tiny-aligned", Path(".lithe") / "aligned"
SHARES = {"instructions": 0.34, "maths": 0.12, "stories": 0.12, "books_children": 0.14, "books_general": 0.12, "python": 0.08,
          "programs": 0.04, "plays": 0.04}
PARTS, BATCHES, BATCH, LONG, LONGEST = 65, 8, 32, 96, 260  # LONG: tokens it goes on with; LONGEST: of an opening
TEMPERATURES = (0.0, 0.0, 0.0, 0.8, 1.0)  # by part
CUES = ("<|assistant|>\n", "Output: ", "\nAnswer:")
STEPS, RATE, LAW, ROWS, LENGTH = 3000, 2e-3, 0.7, 8, 512


def main() -> None:
    ids = np.concatenate([said(part) for part in range(PARTS)])
    pieces = [ids[at : at + LENGTH] for at in range(0, len(ids) // LENGTH * LENGTH, LENGTH)]
    ids = np.concatenate([pieces[i] for i in np.random.default_rng(0).permutation(len(pieces))])
    target = lithe.load(TARGET, dtype="bf16", fast=False).requires_grad_(False)
    draft = begin(target, Recipe(start=START)).requires_grad_(True)
    told = {"target": fitted.identity(target), "parent": checkpoint.fingerprint(draft.folder), "law": LAW, "rate": RATE,
            "written": len(ids)}
    teach = Plan(schedule=Cosine(steps=STEPS, warmup=STEPS // 20, floor=0.05), optimizer=Optimizer(lr=RATE))
    rows = Teacher(target, Windows(ids=ids, rows=ROWS, length=LENGTH), (LOGITS,))
    at = fit(draft, rows, partial(following, law=LAW), teach, folder=WORK / "run", identity=told)
    stage = {"stage": "align", "steps": STEPS, "tokens": at.tokens, "loss": at.loss}
    draft.receipts = [*draft.receipts, {"verb": "draft", "lithe": __version__, **told, "stages": [stage]}]
    checkpoint.save(draft, OUT, dtype=torch.bfloat16, tokenizer_from=target.folder)


def said(part: int) -> np.ndarray:
    """What tiny writes behind 256 openings, with them; kept."""
    path = WORK / "said" / f"{part}.npy"
    if not path.is_file():
        (made, sources), dice = writer(), random.Random(part)
        model, law = made.model, Law.of(temperature=TEMPERATURES[part % len(TEMPERATURES)])
        begun = partial(Sequence, limit=LONG, context=model.config.context, law=law)
        found: list[int] = []
        for _ in range(BATCHES):
            batch = [begun(opening(sources, model.tokenizer.backend, dice), seed=dice.randrange(2**31)) for _ in range(BATCH)]
            for _ in run(made, batch):
                pass
            found += [token for sequence in batch for token in sequence.ids]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(aside := path.with_suffix(".part.npy"), np.array(found, np.int32))
        aside.rename(path)
        print(f"written part {part + 1} of {PARTS}, {len(found):,} tokens", flush=True)
    return np.load(path)


@cache
def writer() -> tuple[DecodePlan, dict[str, corpus.Split]]:
    """What all parts are written with, and of."""
    return plan(lithe.load(TARGET, dtype="bf16")), corpus.sources()


def opening(sources: dict[str, corpus.Split], tokenizer, dice: random.Random) -> list[int]:
    """A question, or a piece of text that begins where a sentence or a line does."""
    name = dice.choices(list(SHARES), list(SHARES.values()))[0]
    text = dice.choice(sources[name].train)
    if name in ("instructions", "maths", "programs"):
        ids = tokenizer.encode(question(text, dice)).ids
        ids = ids[-dice.randint(40, LONGEST) :] if len(ids) > LONGEST else ids
    else:
        ids = tokenizer.encode(piece(text, name, dice)).ids[:LONGEST]
    return [tokenizer.token_to_id(corpus.END), *ids] if dice.random() < 0.5 or not ids else ids


def question(text: str, dice: random.Random) -> str:
    cue = next((cue for cue in CUES if cue in text), None)
    if cue is None:
        return text[: dice.randint(20, 200)]
    asked = text[: text.index(cue) + len(cue)]
    if dice.random() < 0.5:
        asked = asked.removesuffix(cue).removeprefix(f"{corpus.USER}\n").strip() + "\nAnswer:"
    return asked


def piece(text: str, name: str, dice: random.Random) -> str:
    at = dice.randrange(max(1, len(text) - 1500)) if dice.random() < 0.7 else 0
    if at:
        at = text.find("\n" if name in ("python", "plays") else ". ", at) + 1
        while at < len(text) - 1 and text[at] in " \n":
            at += 1
    found = text[at : at + dice.randint(40, 900 if dice.random() < 0.3 else 250)]
    return found.strip() + "\nAnswer:" if name != "python" and dice.random() < 0.3 else found


if __name__ == "__main__":
    main()
