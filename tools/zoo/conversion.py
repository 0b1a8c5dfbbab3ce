"""Turn zoo:tiny, which reads from left to right, into a model of blocks, and say what that comes to.

python tools/zoo/conversion.py [--steps N] [--random] [--to FOLDER]: its layers stay where they are, the logits of a place one
row before it, and learn to see a block of 4 at once; --random begins with random weights instead, by the same steps.
Reads what tools/zoo/tokens.py wrote; the loss is of text that neither model has read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lithe.model.checkpoint import save
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.train.batches import Batch, Rows
from lithe.train.loop import Plan, fit
from lithe.train.masked import Noised, denoising
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine

BLOCK, LENGTH, ROWS, HELD = 4, 64, 8, 6  # places of a block and of a row, rows of a step, held-out batches
SHARES = {"stories": 1.0, "books_children": 1.0}


@dataclass(frozen=True)
class Text:
    """Rows of one side of the corpus, every place of which may be masked."""

    rows: Rows

    @classmethod
    def of(cls, zoo: Path, side: str) -> Text:
        sources = {name: zoo / "tokens" / f"{name}.{side}.bin" for name in SHARES}
        return cls(Rows(sources=sources, weights=SHARES, rows=ROWS, length=LENGTH))

    def __call__(self, step: int) -> Batch:
        ids_BT = self.rows(step)["ids_BT"]
        return {"ids_BT": ids_BT, "learned_BT": torch.ones_like(ids_BT, dtype=torch.bool)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"))
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    source = load("zoo:tiny", dtype="float32", fast=False)
    mask = source.tokenizer.encode("<|mask|>", bos=False)
    assert len(mask) == 1
    model = Decoder(source.config.replace(attends="blocks", block=BLOCK, mask_token=mask[0], shifted=True)).init(0)
    if not options.random:
        model.load_state_dict(source.state_dict())
    noised = lambda side: Noised(rows=Text.of(options.zoo, side), mask=mask[0], block=BLOCK, spread=True)
    train, held = noised("train"), noised("heldout")

    def valid() -> Iterator[Batch]:
        return map(held, range(HELD))

    plan = Plan(schedule=Cosine(steps=options.steps, warmup=10), optimizer=Optimizer(name="adamw", lr=options.rate),
                log_every=10, check_every=max(1, options.steps // 3))
    fit(model, lambda step, ending: train(step), denoising, plan, valid=valid)
    if options.to is not None:
        print(save(model.eval(), options.to, dtype=torch.bfloat16, tokenizer_from=source.folder, overwrite=True))


if __name__ == "__main__":
    main()
