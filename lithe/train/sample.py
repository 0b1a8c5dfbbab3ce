"""A few rows of text for methods that look at data before they begin: what is calibrated on, not trained on."""

from __future__ import annotations

import numpy as np
import torch

from lithe.errors import FormatError
from lithe.model import corpus
from lithe.model.decoder import Decoder
from lithe.train import text
from lithe.train.batches import Batch


def sample(model: Decoder, name: str, *, rows: int, length: int) -> list[Batch]:
    """At most `rows` batches of one row of at most `length` tokens, spread evenly over a corpus; the same ones every time.

    name: `.jsonl` in any form that training reads, or any file that a corpus may be. Raises what reading it does, and
    FormatError where it is too short for one row of two tokens.
    """
    length = min(length, model.config.context)
    if name.removesuffix(".gz").endswith(".jsonl") and model.tokenizer is not None:
        examples = text.read(name, model.tokenizer, context=length, cut=True, everything=True)
        pieces = [examples[i][0] for i in _spread(len(examples), rows)]
    else:
        ids = corpus.load(name, model.tokenizer).ids
        pieces = [ids[i * length : (i + 1) * length + 1] for i in _spread(max(1, (len(ids) - 1) // length), rows)]
    found = [np.array(piece, np.int64) for piece in pieces if len(piece) > 1]
    if not found:
        raise FormatError(f"{name} holds too little text to look at: two tokens are the least")
    if (most := max(int(piece.max()) for piece in found)) >= model.config.vocab:
        raise FormatError(f"{name} has token {most}, this model's vocabulary ends at {model.config.vocab - 1}")
    return [{"ids_BT": torch.from_numpy(piece[None, :-1]).to(model.device),
             "targets_BT": torch.from_numpy(piece[None, 1:]).to(model.device)} for piece in found]


def _spread(of: int, wanted: int) -> list[int]:
    return np.linspace(0, of - 1, min(of, wanted)).round().astype(int).tolist()
