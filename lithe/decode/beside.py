"""Learning what a frozen target says of rows put beside a text: the text is read once, the rows attend to it with gradients.

Axes: B rows of text, T tokens of each, P points in it, G rows beside it, S slots, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.errors import UnsupportedError
from lithe.model.decoder import ALL, NONE, Decoder
from lithe.ops.attention import attention


class Beside:
    """A cache for learning: keys and values of all passes so far, gradients included, seen as `seen_GS` of the pass says."""

    can: frozenset[str] = frozenset()

    def __init__(self, model: Decoder, rows: int, batch: int):
        """rows: the furthest that two may lie apart. Raises UnsupportedError where the model's own window is narrower."""
        if any(window is not None and window < rows for window in model.windows):
            raise UnsupportedError(f"rows beside a text learn from all of it, but this model looks back no further than "
                                   f"{min(filter(None, model.windows))} tokens: fit with shorter rows (--length)")
        self.lengths, self.seen_GS = [0] * batch, torch.zeros(0)
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def fork(self) -> Beside:
        """A twin that goes on alone."""
        twin = copy(self)
        twin.k, twin.v = dict(self.k), dict(self.v)
        return twin

    def reserve(self, rows: int) -> None:
        """There is always room."""

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, *, visible_BTS: Any, causal: bool,
               **see: Any) -> Tensor:
        for held, new in ((self.k, k_BGTD), (self.v, v_BGTD)):
            held[layer] = torch.cat((held[layer], new), 2) if layer in held else new
        return attention(q_BHTD, self.k[layer], self.v[layer], visible_BTS=self.seen_GS[None], **see)


def reached(points_P: Tensor, steps: int, tokens: int, copies: int = 1, both: bool = False) -> tuple[Tensor, Tensor]:
    """Positions [G] and sight [G, tokens + G] of chains of `steps` rows behind each point of a text, so many copies of each.

    A row sees the text up to its point, its own chain up to itself, or all of it (both), and no other chain. G runs over
    points, copies, steps.
    """
    chain_G = torch.arange(len(points_P) * copies).repeat_interleave(steps)
    step_G = torch.arange(steps).repeat(len(points_P) * copies)
    point_G = points_P.repeat_interleave(steps * copies)
    text = torch.arange(tokens) <= point_G[:, None]
    own = (chain_G[:, None] == chain_G) & (both | (step_G[:, None] >= step_G))
    return point_G + step_G + 1, torch.cat((text, own), 1)


def points(tokens: int, ahead: int, many: int, learning: bool) -> Tensor:
    """Places [P] with so many tokens ahead of them: drawn anew each step, or evenly spread where nothing is learned."""
    places = max(1, tokens - ahead)
    if learning:
        return torch.randperm(places)[:many].sort().values
    return torch.linspace(0, places - 1, min(many, places)).round().long()


class Text:
    """A frozen target's pass over a text from some layer on, and passes over rows beside it."""

    def __init__(self, model: Decoder, states_BTC: Tensor, first: int):
        """states_BTC: what layer `first` reads of the text."""
        B, T, _ = states_BTC.shape
        self.model, self.layers, self.cache = model, range(first, model.config.layers), Beside(model, T, B)
        self.cache.seen_GS = torch.ones(T, T, dtype=torch.bool, device=states_BTC.device).tril()
        with torch.no_grad():
            self.final_BTC = model(embeds=states_BTC, cache=self.cache, layers=self.layers, taps=("final",),
                                   logits=NONE).taps["final"]

    def law(self, places: Tensor) -> Tensor:
        """Log-probabilities of what follows these places of the text, [B, ..., V]."""
        with torch.no_grad():
            return self.model.unembed(self.final_BTC[:, places]).log_softmax(-1)

    def say(self, rows_BGC: Tensor, pos_G: Tensor, seen_GS: Tensor) -> Tensor:
        """Logits [B, G, V] of rows beside it."""
        self.cache.seen_GS = seen_GS.to(rows_BGC.device)
        pos_BG = pos_G.to(rows_BGC.device).expand(len(rows_BGC), -1)
        return self.model(embeds=rows_BGC, pos_BT=pos_BG, cache=self.cache, layers=self.layers, logits=ALL).scores


def apart(logits: Tensor, law: Tensor) -> Tensor:
    """Kullback-Leibler distance from the target's law, as log-probabilities, to a guess of it, in nats, summed."""
    return F.kl_div(logits.log_softmax(-1), law, log_target=True, reduction="sum")


def foretold(said_BGV: Tensor, ids_BT: Tensor, points_P: Tensor, steps: int) -> Sequence[tuple[Tensor, Tensor]]:
    """For step i: logits [B, P, V] of the chains' rows, and the tokens that follow point + i, the mean of all copies."""
    said = said_BGV.unflatten(1, (len(points_P), -1, steps)).mean(2)
    return [(said[:, :, i], ids_BT[:, points_P + 2 + i]) for i in range(steps)]
