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

from lithe.bench.parallel._tasks import END, OPEN, TASKS, VOCABULARY, draw
from lithe.model.checkpoint import save
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.batches import Batch
from lithe.train.loop import Plan, fit
from lithe.train.masked import Noised, denoising
from lithe.train.optim import Optimizer
from lithe.train.schedule import Wsd

PACKAGE = Path(__file__).resolve().parents[2] / "lithe" / "zoo"
ID = {word: i for i, word in enumerate(VOCABULARY)}
PROMPT, ROOM = 19, 20  # places of the longest prompt, and of an answer, ends of text included
BASE = dict(vocab=len(VOCABULARY), width=128, layers=4, heads=4, kv_heads=4, ffn=320, context=512, tied=True,
            mask_token=ID[OPEN])
KINDS = {"tiny-diffusion": dict(attends="full"), "tiny-block": dict(attends="blocks", block=4),
         "tiny-diffusion-moe": dict(attends="full", experts=16, experts_per_token=4, expert_ffn=96)}
HARD = {"add": 3, "addr": 2, "square": 3, "sort": 2, "reverse": 2, "remove_index": 2, "insert_index": 2, "replace_index": 2}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Rows of fresh problems, each by (seed, step, row): prompt, answer, then ends of text."""

    rows: int = 64
    seed: int = 0
    block: int = 0

    def __call__(self, step: int) -> Batch:
        share = np.array([HARD.get(task, 1) for task in TASKS], float)
        ids, learned = [], []
        for row in range(self.rows):
            dice = np.random.default_rng([self.seed, step, row])
            problem = draw(TASKS[int(dice.choice(len(TASKS), p=share / share.sum()))], dice)
            prompt = [ID[word] for word in problem.prompt]
            answer = [ID[word] for word in problem.answer]
            ids.append(prompt + answer + [ID[END]] * (PROMPT + ROOM - len(prompt) - len(answer)))
            learned.append([i >= len(prompt) and i < len(prompt) + ROOM for i in range(PROMPT + ROOM)])
        return {"ids_BT": torch.tensor(ids), "learned_BT": torch.tensor(learned)}


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
    parser.add_argument("--seconds", type=float, default=5400)
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"))
    parser.add_argument("--to", type=Path, default=PACKAGE)
    options = parser.parse_args()
    settings = BASE | KINDS[options.model]
    model = Decoder(Config(**settings)).init(0)
    noised = Noised(rows=Drawn(), mask=ID[OPEN], block=settings.get("block", 0))
    plan = Plan(schedule=Wsd(warmup=200), optimizer=Optimizer(name="adamw", lr=2e-3), seconds=options.seconds, log_every=50)
    fit(model, noised, denoising, plan, folder=options.zoo / options.model)
    folder = save(model.eval(), options.to / options.model, dtype=torch.bfloat16,
                  tokenizer_from=companions(options.zoo / "words"), overwrite=True)
    (folder / "model.safetensors").chmod(0o644)
    print(folder)


if __name__ == "__main__":
    main()
