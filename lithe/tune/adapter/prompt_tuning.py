"""Train the embeddings of a few rows before the text, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lithe.card import Card, knob
from lithe.model.adapted import Part
from lithe.model.parts import wide_dtype
from lithe.model.prefixed import Prompt

CARD = Card(paper="Prompt tuning (Lester et al. 2021)", promises=("touches_only",), trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rows: int = knob(16, "rows before the text", low=1, high=65536)


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs

    @torch.no_grad()
    def build(self, model: Any, dice: torch.Generator) -> dict[str, Part]:
        """They start as embeddings of tokens drawn from the vocabulary (section 3.1's sampled vocabulary, over all of it)."""
        ids_P = torch.randint(model.config.vocab, (self.knobs.rows,), generator=dice).to(model.device)
        return {"embed_tokens": Prompt(model.embed(ids_P[None])[0].to(wide_dtype(model), copy=True))}

    def size(self, model: Any) -> int:
        return self.knobs.rows * model.config.width
