"""The plain loss. A loss slot is `loss(model, batch) -> (sum over tokens, tokens)`; the loop divides one by the other.

Axes: B rows, T tokens of a row, N counted tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lithe.model.decoder import ALL, NONE
from lithe.train.batches import IGNORED, Batch


def next_token(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token in nats, summed, and how many targets counted."""
    logits_BTV = model(batch["ids_BT"], logits=ALL, **placed(batch)).logits
    targets_BT = batch["targets_BT"]
    total = F.cross_entropy(_wide(logits_BTV).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (targets_BT != IGNORED).sum()


@dataclass(frozen=True)
class Chunked:
    """The same from hidden states: logits of the counted tokens only, `rows` of them at a time, made again for the gradient.

    So no more than rows x vocabulary logits are ever held.
    """

    rows: int = 1024

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        hidden_BTC = model(batch["ids_BT"], logits=NONE, **placed(batch)).hidden
        counted_BT = batch["targets_BT"] != IGNORED
        hidden_NC, targets_N = hidden_BTC[counted_BT], batch["targets_BT"][counted_BT]
        head: Callable[[Tensor], Tensor] = cast(Any, model).head
        total = chunked(lambda hidden, targets: F.cross_entropy(_wide(head(hidden)), targets, reduction="sum"),
                        hidden_NC, targets_N, rows=self.rows)
        return total, counted_BT.sum()


def chunked(score: Callable[..., Tensor], hidden_NC: Tensor, *aligned: Tensor, rows: int) -> Tensor:
    """The sum of score(hidden, *aligned) over chunks of rows, what each computes inside being dropped until its gradient.

    With no rows at all it is a zero that still reaches the hidden states, as sharded weights need for their gradients.
    """
    total = hidden_NC.sum() * 0.0
    for parts in zip(hidden_NC.split(rows), *(each.split(rows) for each in aligned), strict=True):
        held = torch.is_grad_enabled()
        total = total + (checkpoint(score, *parts, use_reentrant=False) if held else score(*parts))
    return total


def placed(batch: Batch) -> dict[str, Tensor]:
    """What a batch says of documents and positions, as a pass takes it."""
    return {name: batch[name] for name in ("docs_BT", "pos_BT") if name in batch}


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
