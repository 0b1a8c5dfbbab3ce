"""How far a model's predictions lie from the dense one's. Axes: B rows, T tokens, M = B T, V vocabulary, K likeliest tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lithe.compress.calibrate import Calibration
from lithe.model.decoder import ALL, NONE, Decoder

TOP = 512  # tokens of the dense model's law that are kept; the rest counts as one


class Fitness:
    """KL(dense || model) in nats a token, on a calibration text whose dense laws are kept once they were asked for: the dense
    model must stay as it is. spent: tokens passed so far. before: a layer, and what it read of the model that was asked
    for last."""

    def __init__(self, dense: Decoder, calibration: Calibration, top: int = TOP):
        self.dense, self.calibration, self.top, self.spent = dense, calibration, min(top, dense.config.vocab), 0
        self.laws: list[tuple[Tensor, Tensor]] = []
        self.before: tuple[int, list[Tensor]] = 0, []

    @torch.no_grad()
    def _law(self, dense: Decoder, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        logp_BTV = _laws(dense, ids_BT)
        logp_BTK, ids_BTK = logp_BTV.topk(self.top, dim=-1)
        return (logp_BTK.clone() if self.top < logp_BTV.shape[-1] else logp_BTV), ids_BTK

    @torch.no_grad()
    def __call__(self, model: Decoder, tokens: int = 0, first: int = 0) -> float:
        """On the first so many tokens, rows whole; 0: on all. first: the layer from which on the model may differ from the one
        asked for with this number before: what that layer read is not worked out again."""
        total, count, batches = 0.0, 0, self.calibration.first(tokens)
        late = self.calibration.batches[len(self.laws) : len(batches)]
        self.laws += [self._law(self.dense, batch["ids_BT"]) for batch in late]
        for number, (batch, (logp_BTK, ids_BTK)) in enumerate(zip(batches, self.laws, strict=False)):
            ids_BT = batch["ids_BT"]
            found_BTV = self._found(model, ids_BT, number, first)
            total += float(kl(logp_BTK[: len(ids_BT)], found_BTV, ids_BTK[: len(ids_BT)]).sum())
            count += ids_BT.numel()
        self.spent += count
        return total / count

    def _found(self, model: Decoder, ids_BT: Tensor, number: int, first: int) -> Tensor:
        """The model's law on a batch by its number."""
        if not first:
            return _laws(model, ids_BT)
        kept = self.before[1] if self.before[0] == first else []
        if number < len(kept) and len(kept[number]) == len(ids_BT):
            rest = range(first, model.config.layers)
            return _log(model(embeds=kept[number], layers=rest, logits=ALL).scores)
        found = model(ids_BT, taps=(first - 1,), logits=ALL)
        self.before = first, [*kept[:number], found.taps[first - 1]]
        return _log(found.scores)


def kl(logp: Tensor, found: Tensor, ids: Tensor) -> Tensor:
    """KL of each token [...] from log laws: the dense one of its K likeliest tokens, or of all V, and the model's [..., V]."""
    if logp.shape[-1] == found.shape[-1]:
        return (logp.exp() * (logp - found)).sum(-1)
    picked = found.gather(-1, ids)
    inside = (logp.exp() * (logp - picked)).sum(-1)
    rest, other = (torch.log1p(-p.exp().sum(-1).clamp(max=1 - 1e-6)) for p in (logp, picked))
    return inside + rest.exp() * (rest - other)


def _laws(model: Decoder, ids_BT: Tensor) -> Tensor:
    return _log(model(ids_BT, logits=ALL).scores)


def _log(logits_BTV: Tensor) -> Tensor:
    return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32)).log_softmax(-1)


@torch.no_grad()
def nll(model: Decoder, calibration: Calibration) -> float:
    """Nats a token of the text itself."""
    total, count = 0.0, 0
    for batch in calibration.batches:
        ids_BT = batch["ids_BT"]
        hidden_BTC = model(ids_BT, logits=NONE).hidden[:, :-1]
        logits = model.head(hidden_BTC).flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)),
                                                         ids_BT[:, 1:].flatten(), reduction="sum"))
        count += ids_BT[:, 1:].numel()
    return total / count
