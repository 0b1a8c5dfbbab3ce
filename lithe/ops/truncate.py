"""Warped logits: penalties, and truncations that cut tokens off with -inf. Axes: N rows, V vocabulary, K candidates.

Every row is treated by itself and keeps its dtype; probabilities are taken and added up in float64. Among equals the lowest id
is kept first. What is already cut off stays so, and a row that had a token keeps one. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CUT = float("-inf")
FEW = 1024


def top_k(logits_NV: Tensor, k: int) -> Tensor:
    """The k largest and no more; fewer where the vocabulary or what is left of it is smaller."""
    least_N1 = logits_NV.topk(min(k, logits_NV.shape[-1]), dim=-1).values[:, -1:]
    above_NV, level_NV = logits_NV > least_N1, logits_NV == least_N1
    room_N1 = k - above_NV.sum(-1, keepdim=True)
    return _keep(logits_NV, above_NV | level_NV & (level_NV.cumsum(-1) <= room_N1))


def top_p(logits_NV: Tensor, mass: float) -> Tensor:
    """The likeliest tokens, up to the one with which their mass reaches `mass`."""
    if mass >= 1:  # rounding must not cut the tail off
        return logits_NV
    p_NV = _law(logits_NV)
    return _first(logits_NV, p_NV, _by_logit(logits_NV, p_NV, mass), mass)


def typical(logits_NV: Tensor, mass: float) -> Tensor:
    """The tokens whose surprise is nearest to the entropy, up to the one with which their mass reaches `mass`."""
    if mass >= 1:
        return logits_NV
    surprise_NV = -logits_NV.double().log_softmax(-1)
    order_NV = (surprise_NV - entropy(logits_NV)).abs().sort(dim=-1, stable=True).indices
    return _first(logits_NV, _law(logits_NV), order_NV, mass)


def min_p(logits_NV: Tensor, ratio: float) -> Tensor:
    """Tokens at least `ratio` times as likely as the likeliest."""
    return _from(logits_NV, ratio * _law(logits_NV).amax(-1, keepdim=True))


def epsilon(logits_NV: Tensor, floor: float) -> Tensor:
    """Tokens of at least this probability."""
    return _from(logits_NV, torch.full_like(logits_NV[:, :1], floor, dtype=torch.float64))


def eta(logits_NV: Tensor, floor: float) -> Tensor:
    """Tokens of probability at least min(floor, sqrt(floor) exp(-entropy)): a lower floor where the law is flat."""
    return _from(logits_NV, (floor**0.5 * (-entropy(logits_NV)).exp()).clamp(max=floor))


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy in nats, [N, 1]. A token that is cut off adds nothing."""
    log_NV = logits_NV.double().log_softmax(-1)
    return -(log_NV.exp() * log_NV).nansum(-1, keepdim=True)


def repetition(logits_NV: Tensor, contexts: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Logits of tokens seen in the row's context, divided by `penalty` where positive and multiplied where negative."""
    out_NV = logits_NV.clone()
    for row_V, context in zip(out_NV, contexts, strict=True):
        seen = torch.tensor(sorted(set(context)), dtype=torch.long, device=row_V.device)
        row_V[seen] = torch.where(row_V[seen] < 0, row_V[seen] * penalty, row_V[seen] / penalty)
    return out_NV


def discount(logits_NV: Tensor, contexts: Sequence[Sequence[int]], *, once: float = 0.0, each: float = 0.0) -> Tensor:
    """Logits of tokens seen in the row's context, less `once` and less `each` times their count there."""
    out_NV = logits_NV.clone()
    for row_V, context in zip(out_NV, contexts, strict=True):
        seen, count = torch.tensor(context, dtype=torch.long, device=row_V.device).unique(return_counts=True)
        row_V[seen] -= once + each * count.to(row_V)
    return out_NV


def bias(logits_NV: Tensor, amounts: Mapping[int, float]) -> Tensor:
    """Logits plus an amount for each token named. Raises IndexError for a token outside the vocabulary."""
    out_NV = logits_NV.clone()
    out_NV[:, list(amounts)] += torch.tensor(list(amounts.values())).to(out_NV)
    return out_NV


def _law(logits_NV: Tensor) -> Tensor:
    return logits_NV.double().softmax(-1)


def _keep(logits_NV: Tensor, keep_NV: Tensor) -> Tensor:
    return logits_NV.masked_fill(~keep_NV, CUT)


def _by_logit(logits_NV: Tensor, p_NV: Tensor, mass: float) -> Tensor:
    """Token ids by falling logit, the lowest first among equals; only the first few where those are sure to hold `mass`.

    Sorting a whole vocabulary costs as much as a pass of a small model. What stands level with the last of the few is not
    counted, since others that do may have been left out.
    """
    if logits_NV.shape[-1] > FEW:
        few = logits_NV.topk(FEW, dim=-1)
        sure_NK = p_NV.gather(-1, few.indices) * (few.values > few.values[:, -1:])
        if (sure_NK.sum(-1) > mass + 1e-9).all():
            ids_NK = few.indices.sort(dim=-1).values
            return ids_NK.gather(-1, logits_NV.gather(-1, ids_NK).sort(dim=-1, descending=True, stable=True).indices)
    return logits_NV.sort(dim=-1, descending=True, stable=True).indices


def _first(logits_NV: Tensor, p_NV: Tensor, order_NK: Tensor, mass: float) -> Tensor:
    """The first tokens in this order, as long as those before them weigh less than `mass`; always one."""
    before_NK = p_NV.gather(-1, order_NK).cumsum(-1).roll(1, dims=-1)
    before_NK[:, 0] = CUT
    return _keep(logits_NV, torch.zeros_like(logits_NV, dtype=torch.bool).scatter_(-1, order_NK, before_NK < mass))


def _from(logits_NV: Tensor, floor_N1: Tensor) -> Tensor:
    """Tokens of probability at least `floor`; always the likeliest."""
    keep_NV = _law(logits_NV) >= floor_N1
    return _keep(logits_NV, keep_NV.scatter_(-1, logits_NV.argmax(-1, keepdim=True), True))
