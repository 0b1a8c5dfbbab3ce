"""Train the zoo's diffusion models on drawn tasks, and export them. The same command resumes an interrupted run.

python tools/zoo/diffusion.py tiny-diffusion [--seconds N] [--zoo .lithe/zoo] [--to lithe/zoo]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lithe.bench.parallel._tasks import END, OPEN, VOCABULARY, draw
from lithe.model.checkpoint import save
from lithe.model.config import Config, Rope
from lithe.model.decoder import Decoder
from lithe.train.batches import Batch
from lithe.train.loop import Plan, fit
from lithe.train.masked import Noised, denoising
from lithe.train.optim import Optimizer
from lithe.train.schedule import Wsd

PACKAGE = Path(__file__).resolve().parents[2] / "lithe" / "zoo"
ID = {word: i for i, word in enumerate(VOCABULARY)}
GROUPS = {  # tasks of one shape: their shares, places of the longest prompt and of an answer with an end, rows of a step
    "lists": (dict(copy=1, reverse=2, sort=2, replace_index=2, insert_index=2, remove_index=2, shuffle=1, replace_random=1,
                   insert_random=1, remove_random=1), 13, 8, 24),
    "numbers": (dict(add=3, addr=2), 10, 5, 10),
    "squares": (dict(square=1), 19, 17, 8),
}
ROOMS = (18, 40, 80, 160, 480)  # of the longer canvases, which hold ends of text for the most part
EVERY = 12  # steps between them
BASE = dict(vocab=len(VOCABULARY), width=96, layers=4, heads=3, kv_heads=3, ffn=256, context=512, tied=True,
            mask_token=ID[OPEN], rope=Rope(theta=100.0))  # rows are short: slower turns would tell places apart too little
KINDS = {"tiny-diffusion": dict(attends="full"), "tiny-block": dict(attends="blocks", block=4),
         "tiny-diffusion-moe": dict(attends="full", experts=16, experts_per_token=4, expert_ffn=64)}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Rows of fresh problems, each by (seed, step, row): prompt, answer, then ends of text up to one length."""

    group: str
    rows: int
    room: int
    seed: int = 0

    def __call__(self, step: int) -> Batch:
        shares, most, _, _ = GROUPS[self.group]
        share = np.array(list(shares.values()), float)
        ids, learned = [], []
        for row in range(self.rows):
            dice = np.random.default_rng([self.seed, step, row, most])
            problem = draw(list(shares)[int(dice.choice(len(shares), p=share / share.sum()))], dice)
            text = [ID[word] for word in (*problem.prompt, *problem.answer)]
            ids.append(text + [ID[END]] * (most + self.room - len(text)))
            learned.append([i >= len(problem.prompt) for i in range(most + self.room)])
        return {"ids_BT": torch.tensor(ids), "learned_BT": torch.tensor(learned)}


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The micro-batches of a step: one of each group, now and then one of long canvases."""

    block: int = 0

    def __call__(self, step: int, ending: bool = False) -> list[Batch]:
        noised = lambda rows: Noised(rows=rows, mask=ID[OPEN], block=self.block, spread=True)(step)
        made = [noised(Drawn(group=group, rows=rows, room=room)) for group, (_, _, room, rows) in GROUPS.items()]
        if step % EVERY == 0:
            turn = step // EVERY
            room = ROOMS[turn % len(ROOMS)]
            made.append(noised(Drawn(group=list(GROUPS)[turn % len(GROUPS)], rows=max(2, 320 // room), room=room, seed=1)))
        return made


def companions(folder: Path) -> Path:
    """What lies beside the weights: a tokenizer of whole words."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Tokenizer(models.WordLevel(ID, unk_token=OPEN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([END, OPEN])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "mask_token": OPEN}, indent=2) + "\n")
    for file in ("config.json", "generation_config.json"):
        (folder / file).write_text(json.dumps({"eos_token_id": ID[END], "pad_token_id": ID[END]}, indent=2) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=3000)
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"))
    parser.add_argument("--to", type=Path, default=PACKAGE)
    options = parser.parse_args()
    settings = BASE | KINDS[options.model]
    model = Decoder(Config(**settings)).init(0)
    plan = Plan(schedule=Wsd(warmup=100), optimizer=Optimizer(name="adamw", lr=3e-3), seconds=options.seconds, log_every=50)
    fit(model, Batches(block=settings.get("block", 0)), denoising, plan, folder=options.zoo / options.model)
    folder = save(model.eval(), options.to / options.model, dtype=torch.bfloat16,
                  tokenizer_from=companions(options.zoo / "words"), overwrite=True)
    (folder / "model.safetensors").chmod(0o644)
    print(folder)


if __name__ == "__main__":
    main()
