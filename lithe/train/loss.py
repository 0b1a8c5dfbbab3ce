"""The plain loss. A loss slot is `loss(model, batch) -> (sum over tokens, tokens)`; the loop divides one by the other.

Axes: B rows, T tokens of a row, N counted tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.model.decoder import ALL, NONE
from lithe.train.batches import IGNORED, Batch

CELLS, LEAST = 1 << 24, 64  # logits held at once, unless that were fewer rows, whose products would be slow


def next_token(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token in nats, summed, and how many targets counted."""
    logits_BTV = model(batch["ids_BT"], logits=ALL, **placed(batch)).logits
    targets_BT = batch["targets_BT"]
    total = F.cross_entropy(_wide(logits_BTV).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (targets_BT != IGNORED).sum()


@dataclass(frozen=True)
class Chunked:
    """The same from hidden states: logits of the counted tokens only, at most `rows` of them at a time.

    Their gradient is taken at once, so they are neither held nor made twice.
    """

    rows: int = 1024

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        decoder = cast(Any, model)
        hidden_BTC = model(batch["ids_BT"], logits=NONE, **placed(batch)).hidden
        counted_BT = batch["targets_BT"] != IGNORED
        hidden_NC, targets_N = hidden_BTC[counted_BT], batch["targets_BT"][counted_BT]
        head: Callable[[Tensor], Tensor] = decoder.head
        ends = (decoder.norm, decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head)
        total = chunked(lambda hidden, targets: F.cross_entropy(_wide(head(hidden)), targets, reduction="sum"),
                        hidden_NC, targets_N, rows=min(self.rows, max(LEAST, CELLS // decoder.config.vocab)),
                        weights=[weight for end in ends for weight in end.parameters() if weight.requires_grad])
        return total, counted_BT.sum()


def chunked(score: Callable[..., Tensor], hidden_NC: Tensor, *aligned: Tensor, rows: int,
            weights: Sequence[Tensor] = ()) -> Tensor:
    """The sum of score(hidden, *aligned) over chunks of rows, what each computes inside being dropped at once.

    weights: what else score looks at that a gradient is wanted of. With no rows at all there is one empty chunk, whose zero
    still reaches hidden states and weights, as sharded weights need for their gradients.
    """
    if torch.is_grad_enabled():
        return _Summed.apply(score, rows, aligned, hidden_NC, *weights)
    return torch.stack([score(*parts) for parts in _parts(rows, hidden_NC, *aligned)]).sum()


def _parts(rows: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(each.split(rows) for each in tensors), strict=True)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Summed(torch.autograd.Function):
    """A sum over chunks whose gradient is made beside it: no chunk is run again."""

    @staticmethod
    def forward(ctx: Any, score: Callable[..., Tensor], rows: int, aligned: tuple[Tensor, ...], hidden_NC: Tensor,
                *weights: Tensor) -> Tensor:
        sums: list[Tensor] = []
        grad_NC, at = torch.empty_like(hidden_NC), 0
        grads: list[Tensor] = []
        for hidden, *others in _parts(rows, hidden_NC, *aligned):
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):  # gone with the chunk
                inner = hidden.detach().requires_grad_()
                summed = score(inner, *others)
            grad_NC[at : at + len(inner)], *found = torch.autograd.grad(summed, [inner, *weights])
            grads = [a.add_(b) for a, b in zip(grads, found, strict=True)] if grads else found
            sums.append(summed.detach())
            at += len(inner)
        ctx.save_for_backward(grad_NC, *grads)
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return (None, None, None, *((grad * factor.to(grad.dtype)) for grad in ctx.saved_tensors))


def placed(batch: Batch) -> dict[str, Tensor]:
    """What a batch says of documents and positions, as a pass takes it."""
    return {name: batch[name] for name in ("docs_BT", "pos_BT") if name in batch}


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
