"""A dense rival of few bytes: a small model trained on stories from drawn weights, scored as the suite `compress` scores.

    python tools/compression_dense.py --ledger docs/ledger-compress.jsonl [--steps 700] [--folder .lithe/dense]

It reads the zoo's stories and nothing else: in 700 steps of 4,096 tokens as many of them as zoo:tiny read beside its books.
The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lithe.bench import provenance
from lithe.bench.compress import DENSE, SUITE
from lithe.bench.compress._plan import SHIPPED, Cell, read
from lithe.bench.compress._score import Documents
from lithe.bench.ledger import Ledger
from lithe.model.checkpoint import save
from lithe.model.decoder import Decoder
from lithe.model.load import load, resolve
from lithe.train.batches import Rows
from lithe.train.loop import Plan, fit
from lithe.train.loss import next_token
from lithe.train.optim import Optimizer
from lithe.train.schedule import Wsd

sys.path.insert(0, str(Path(__file__).resolve().parent / "zoo"))
from corpus import data_folder, stories
from models import SHARED, Config, fast_bf16
from tokenizers import Tokenizer
from tokens import encode

CONFIG = Config(width=256, layers=3, heads=4, kv_heads=2, ffn=640, **SHARED)  # 28 % of zoo:tiny's bytes, as 2.5 bits take
LENGTH, ROWS, DECAY, WARMUP, RATE, SEED = 256, 16, 0.4, 50, 5e-3, 0
BASE = "zoo:tiny"


def trained(folder: Path, steps: int) -> tuple[Decoder, dict[str, Any]]:
    """The model after so many steps, in bf16, and what its training read."""
    tokens = folder / "stories.bin"
    if not tokens.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = encode(Tokenizer.from_file(str(resolve(BASE) / "tokenizer.json")), stories(data_folder()).train)
        found.tofile(tokens)
    rows = Rows(sources={"stories": tokens}, weights={"stories": 1.0}, rows=ROWS, length=LENGTH, seed=SEED)
    ending = round(DECAY * steps)
    plan = Plan(schedule=Wsd(warmup=WARMUP, decay_from=steps - ending, decay_steps=ending), log_every=20,
                optimizer=Optimizer(name="muon", lr=RATE), autocast=torch.bfloat16 if fast_bf16() else None)
    model = Decoder(CONFIG).init(SEED)
    at = fit(model, rows, next_token, plan, folder=folder / "run")
    made = save(model, folder / "model", dtype=torch.bfloat16, tokenizer_from=resolve(BASE), overwrite=True)
    told = {"tokens": at.tokens, "steps": at.step, "seconds": round(at.seconds), "text": "stories"}
    return load(str(made), dtype="float32", fast=False, offline=True), told


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, required=True)
    asked.add_argument("--folder", type=Path, default=Path(".lithe/dense"))
    asked.add_argument("--steps", type=int, default=700)
    asked.add_argument("--threads", type=int, default=1)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    plan = read(SHIPPED)
    model, told = trained(given.folder, given.steps)
    documents = Documents(load(BASE, dtype="float32", fast=False, offline=True), data_folder() / plan.held_out,
                          plan.documents, plan.context)
    assert model.folder is not None
    size = sum(path.stat().st_size for path in model.folder.glob("*.safetensors"))
    cell = Cell(method=DENSE, steps="", ratio=None, on="plain", seed=SEED, tokens=0)
    record = provenance.record(SUITE, model, measured={"bytes": size, **documents.score(model), "trained": told}, seed=SEED,
                               inputs=[documents.ids, None], method=DENSE, settings=plan.sizes | vars(cell))
    Ledger(given.ledger).append(replace(record, model=f"dense, {told['tokens'] / 1e6:.1f} M tokens of stories"))
    print(f"loss {record.measured['loss']:.4f}, {size:,} bytes, {told}")


if __name__ == "__main__":
    main()
