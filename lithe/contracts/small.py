"""Small float64 models with decided opinions, on which exact claims can be checked in a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

from lithe.model.checkpoint import save
from lithe.model.config import Config
from lithe.model.decoder import Decoder


@cache
def small_model(vocab: int = 32, context: int = 64, seed: int = 0, layers: int = 2, scale: float = 3.0) -> Decoder:
    """Random weights; `scale` sharpens the logits so that greedy text varies."""
    return decided(Config(vocab=vocab, width=32, layers=layers, heads=4, kv_heads=2, ffn=64, context=context), seed, scale)


def decided(config: Config, seed: int, scale: float) -> Decoder:
    """Any shape with random float64 weights whose logits are sharp."""
    model = Decoder(config).double()
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=dice, dtype=torch.float64) * weight.shape[-1] ** -0.5)
            if name.startswith("lm_head"):
                weight.mul_(scale)
    return model.eval()


@cache
def small_folder(vocab: int = 32, context: int = 64, seed: int = 0, scale: float = 3.0, layers: int = 1) -> Path:
    """The same, saved: what a method that loads a second model is given."""
    folder = Path(mkdtemp(prefix="lithe-")) / "model"
    save(small_model(vocab, context, seed, layers, scale), folder, dtype=torch.float64)
    return folder


@cache
def small_corpus(vocab: int = 32, tokens: int = 1000) -> Path:
    """A file of random token ids, long enough for most pairs to occur: what a method that looks things up is given."""
    path = Path(mkdtemp(prefix="lithe-")) / "corpus.npy"
    np.save(path, np.random.default_rng(0).integers(0, vocab, tokens), allow_pickle=False)
    return path
