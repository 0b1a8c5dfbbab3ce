"""What the engines are asked to run: a model folder, its file for llama.cpp, tokens to read, texts to score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lithe.bench.engines import LONG, ROWS, _gguf
from lithe.errors import UsageError
from lithe.model.checkpoint import fingerprint, load, read_config, save
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.load import resolve
from lithe.model.tokenizer import Tokenizer
from lithe.registry import near

PREFIX = "shape:"
SHAPES = {  # random weights tell speeds as well as trained ones
    "135m": Config(vocab=49152, width=576, layers=30, heads=9, kv_heads=3, ffn=1536, context=8192, tied=True)}  # SmolLM-135M's


@dataclass(frozen=True, kw_only=True)
class Target:
    """name: as the user gave it. ids: tokens for all speeds. texts: token ids of held-out texts, none without a tokenizer."""

    name: str
    folder: Path
    config: Config
    ids: list[int]
    texts: list[list[int]]
    home: Path

    @property
    def hash(self) -> str:
        return fingerprint(self.folder)

    @property
    def long(self) -> bool:
        """Whether the context is long enough to measure T(1) behind a long one."""
        return self.config.context >= LONG + max(ROWS)

    def gguf(self, precision: str) -> str:
        """Its file for llama.cpp, made on first use."""
        path = self.home / f"{precision}.gguf"
        if not path.exists():
            _gguf.write(load(self.folder, dtype=torch.float32), path, precision)
        return str(path)


def prepare(name: str, home: Path, texts: list[str], *, offline: bool = False) -> Target:
    """Find a model, or make one of random weights in `home` where the name is `shape:NAME`.

    texts: read and scored by a model with a tokenizer; one without gets random tokens.
    """
    folder = _made(name.removeprefix(PREFIX), home) if name.startswith(PREFIX) else resolve(name, offline=offline)
    config = read_config(folder)
    wanted = LONG + max(ROWS)
    if any(folder.glob("tokenizer*")):
        tokenizer = Tokenizer(folder, config.vocab)
        scored = [ids[: config.context] for text in texts if len(ids := tokenizer.encode(text)) > 1]
        ids = [token for ids in scored for token in ids]
        ids = (ids * (wanted // len(ids) + 1))[:wanted]
    else:
        scored = []
        ids = torch.randint(config.vocab, (wanted,), generator=torch.Generator().manual_seed(0)).tolist()
    return Target(name=name, folder=folder, config=config, ids=ids, texts=scored, home=home)


def _made(name: str, home: Path) -> Path:
    """A folder of random weights, in bfloat16 so that every precision from there up holds the same ones."""
    if name not in SHAPES:
        raise UsageError(f"there is no shape {name!r}{near(name, SHAPES)}")
    return save(Decoder(SHAPES[name]).init(0), home / name, dtype=torch.bfloat16)
