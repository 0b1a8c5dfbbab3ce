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

SHORT, LONG = 512, 1024  # tokens of a row before and in the decay


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One run over the corpus: warm-up, flat part and decay. A later one starts from the weights of the one before."""

    mixture: dict[str, float]  # shares of the rows
    optimizer: Optimizer | None = None  # None: the model's own
    warmup: int = 100
    decay: float = 0.25  # the share of the seconds that the decay takes
    tokens_per_step: int = 8192
    lengths: tuple[int, int] = (SHORT, LONG)


READINGS = (
    Reading(mixture={  # stories and children's books lead, the rest stays a healthy minority
        "stories": 0.18, "books_children": 0.32, "books_general": 0.22, "instructions": 0.11,
        "maths": 0.05, "python": 0.08, "programs": 0.01, "plays": 0.03}),
    Reading(mixture={  # more of the books, most of which the first run did not come to
        "stories": 0.10, "books_children": 0.36, "books_general": 0.36, "instructions": 0.06,
        "maths": 0.03, "python": 0.05, "programs": 0.01, "plays": 0.03},
        optimizer=Optimizer(name="adamw", lr=1e-3),  # Muon's products are in bf16, slow where the processor has none
        warmup=30, decay=0.8, tokens_per_step=4096, lengths=(SHORT, SHORT)),
)  # fmt: skip
SOURCES = tuple(READINGS[0].mixture)


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    name: str
    config: Config
    optimizer: Optimizer
    seconds: float
    seed: int = 0

    def plan(self, reading: Reading, **changes) -> Plan:
        settings = dict(schedule=Wsd(warmup=reading.warmup), optimizer=reading.optimizer or self.optimizer,
                        seconds=self.seconds, decay=reading.decay, autocast=torch.bfloat16 if fast_bf16() else None,
                        compile=True, log_every=20)
        return Plan(**{**settings, **changes})

    def batches(self, tokens: Path, reading: Reading) -> Staged:
        files = {name: tokens / f"{name}.train.bin" for name in reading.mixture}

        def rows(length: int) -> Rows:
            return Rows(sources=files, weights=reading.mixture, rows=reading.tokens_per_step // length, length=length,
                        seed=self.seed + READINGS.index(reading))

        return Staged(stable=rows(reading.lengths[0]), ending=rows(reading.lengths[1]))


def fast_bf16() -> bool:
    """Whether the processor multiplies bf16 itself: without, torch's bf16 products are slower than those of float32."""
    can = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


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
