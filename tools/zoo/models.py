"""The zoo's models: their shapes, how each is trained, and the mixture they read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lithe.model.config import Config
from lithe.train.batches import Rows, Staged
from lithe.train.loop import Plan
from lithe.train.optim import Optimizer
from lithe.train.schedule import Wsd

MIXTURE = {  # shares of the rows; stories and children's books lead, the rest stays a healthy minority
    "stories": 0.18, "books_children": 0.32, "books_general": 0.22, "instructions": 0.11,
    "maths": 0.05, "python": 0.08, "programs": 0.01, "plays": 0.03,
}  # fmt: skip
SHORT, LONG = 512, 1024  # tokens of a row before and in the decay
TOKENS_PER_STEP = 8192


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    name: str
    config: Config
    optimizer: Optimizer
    seconds: float
    seed: int = 0

    def plan(self, **changes) -> Plan:
        settings = dict(schedule=Wsd(warmup=100), optimizer=self.optimizer, seconds=self.seconds, decay=0.25,
                        autocast=torch.bfloat16, compile=True, log_every=20)
        return Plan(**{**settings, **changes})

    def batches(self, tokens: Path) -> Staged:
        files = {name: tokens / f"{name}.train.bin" for name in MIXTURE}

        def rows(length: int) -> Rows:
            return Rows(sources=files, weights=MIXTURE, rows=TOKENS_PER_STEP // length, length=length, seed=self.seed)

        return Staged(stable=rows(SHORT), ending=rows(LONG))


SHARED = dict(vocab=4096, context=1024, tied=True)
MODELS = {
    model.name: model
    for model in (
        ZooModel(name="tiny", optimizer=Optimizer(name="muon", lr=5e-3), seconds=6000,
                 config=Config(width=384, layers=6, heads=6, kv_heads=2, ffn=1024, **SHARED)),
        ZooModel(name="tiny-draft", optimizer=Optimizer(name="muon", lr=1e-2), seconds=480,
                 config=Config(width=128, layers=3, heads=2, kv_heads=1, ffn=352, **SHARED)),
    )
}  # fmt: skip
