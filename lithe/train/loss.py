"""The plain loss. A loss slot is `loss(model, batch) -> (sum over tokens, tokens)`; the loop divides one by the other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lithe.model.decoder import ALL
from lithe.train.batches import IGNORED, Batch


def next_token(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token in nats, summed, and how many targets counted."""
    docs = {"docs_BT": batch["docs_BT"]} if "docs_BT" in batch else {}
    logits_BTV = model(batch["ids_BT"], logits=ALL, **docs).logits
    targets_BT = batch["targets_BT"]
    total = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (targets_BT != IGNORED).sum()
