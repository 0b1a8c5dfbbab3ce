"""Held-out documents: what a model loses on each, and how far its laws lie from the dense model's.

Axes: T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lithe.compress.fitness import kl
from lithe.errors import FormatError
from lithe.model.decoder import NONE, Decoder
from lithe.train import rows

LEAST = 8  # tokens of a document that counts


class Documents:
    """The first documents of a file, each cut to some tokens, and the dense model's last states on them."""

    def __init__(self, dense: Decoder, path: Path, documents: int, context: int):
        """Raises FormatError where the file holds fewer."""
        assert dense.tokenizer is not None
        self.dense, self.ids = dense, []  # type: tuple[Decoder, list[list[int]]]
        for where, row in rows.lines(path):
            ids = dense.tokenizer.encode(rows.mark(row, rows.form(row, where), where, None).text)[:context]
            self.ids += [ids] if len(ids) >= LEAST else []
            if len(self.ids) == documents:
                break
        if len(self.ids) < documents:
            raise FormatError(f"{path} holds {len(self.ids)} documents of {LEAST} tokens or more, where {documents} were "
                              "asked for")
        self.states = [_states(dense, ids) for ids in self.ids]

    def score(self, model: Decoder) -> dict[str, Any]:
        """Nats and tokens of each document, and the mean loss and KL in nats a token."""
        nats, divergence = [], 0.0
        with torch.inference_mode():
            for ids, state_TC in zip(self.ids, self.states, strict=True):
                found_TV = _laws(model, _states(model, ids))
                nats.append(round(-float(found_TV.gather(-1, torch.tensor(ids[1:])[:, None]).sum()), 4))
                wanted_TV = _laws(self.dense, state_TC)
                divergence += float(kl(wanted_TV, found_TV, torch.empty(0)).sum())
        tokens = [len(ids) - 1 for ids in self.ids]
        return {"loss": sum(nats) / sum(tokens), "kl": divergence / sum(tokens), "nats": nats, "tokens": tokens}


@torch.inference_mode()
def _states(model: Decoder, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids[:-1]]), logits=NONE).hidden[0]


def _laws(model: Decoder, state_TC: Tensor) -> Tensor:
    return model.head(state_TC).float().log_softmax(-1)
