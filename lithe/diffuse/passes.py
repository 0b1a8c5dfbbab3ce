"""What a canvas asks of the model, and the one place where it is asked. Axes: R variants, T rows, K keys, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lithe.diffuse.canvas import Canvas, Guess
from lithe.model.decoder import ALL, Decoder
from lithe.model.mask import FULL, Blocks, Mask
from lithe.model.placed import Placed, Store


@dataclass(frozen=True)
class Query:
    """One pass over some places of a canvas, or over several variants of them.

    places_T: which run, rising, variants_RT: what they hold. keys_K: stored places that are seen as well. keep: whether the
    rows' keys and values are stored. mask: who sees whom among the rows [T, T]; None: as the model was trained.
    """

    places_T: Tensor
    variants_RT: Tensor
    keys_K: Tensor | None = None
    keep: bool = False
    mask: Tensor | None = None


@dataclass
class Spent:
    """What was asked of the model for one canvas: counted here, never by a method."""

    passes: int = 0
    rows: int = 0  # places that ran, variants included
    keys: int = 0  # stored places that were read
    experts: int = 0  # that ran in each layer, where the model has any, summed over passes
    rounds: list[int] = field(default_factory=list)  # places committed in each


class Reader:
    """Runs the queries of a batch of canvases, those of one shape together."""

    def __init__(self, model: Decoder):
        self.model, self.config = model, model.config
        self.stores: dict[int, Store] = {}  # by sequence
        self.route: Any = None  # who says which experts run in a pass; None: the router alone
        self.mixed: list[Any] = [module for module in model.modules() if hasattr(module, "among")]

    def store(self, canvas: Canvas) -> Store:
        """The keys and values kept of a canvas."""
        number = canvas.sequence.number
        if number not in self.stores:
            self.stores[number] = Store(self.model, canvas.end)
        return self.stores[number]

    def forget(self, canvas: Canvas) -> None:
        self.stores.pop(canvas.sequence.number, None)

    def run(self, canvases: Seq[Canvas], queries: Seq[Query], spent: Seq[Spent]) -> list[list[Guess]]:
        """For each canvas its guesses, one a variant, of the open places among those that ran."""
        found: list[list[Guess]] = [[] for _ in canvases]
        groups: dict[tuple, list[int]] = {}
        for i, query in enumerate(queries):
            keys = -1 if query.keys_K is None and not query.keep else 0 if query.keys_K is None else len(query.keys_K)
            groups.setdefault((len(query.places_T), keys, query.mask is None or i), []).append(i)
            spent[i].passes += 1
            spent[i].rows += query.variants_RT.numel()
            spent[i].keys += max(keys, 0)
        for members in groups.values():
            with self._counting() as used_B:
                logits = self._pass([canvases[i] for i in members], [queries[i] for i in members])
            for i in members:
                count = len(queries[i].variants_RT)
                found[i], logits = self._guesses(canvases[i], queries[i], logits[:count]), logits[count:]
                spent[i].experts += sum(used_B[:count])
                del used_B[:count]
        return found

    @contextmanager
    def _counting(self) -> Iterator[list[int]]:
        """What the pass within uses of experts: how many ran for each of its rows of places, all layers together."""
        used_B: list[int] = []

        def among(p_BTE: Tensor) -> Tensor:
            kept_B1E = torch.ones_like(p_BTE[:, :1], dtype=torch.bool) if self.route is None else self.route.among(p_BTE)
            taken = p_BTE.masked_fill(~kept_B1E, 0.0).topk(self.config.experts_per_token, -1).indices
            each_B = torch.zeros_like(p_BTE[:, 0]).scatter(1, taken.flatten(1), 1.0).sum(1).int().tolist()
            used_B[:] = [a + b for a, b in zip(used_B or [0] * len(each_B), each_B, strict=True)]
            return kept_B1E

        for module in self.mixed:
            module.among = among
        try:
            yield used_B
        finally:
            for module in self.mixed:
                module.among = None

    def _pass(self, canvases: Seq[Canvas], queries: Seq[Query]) -> Tensor:
        """Logits [all variants, T, V] of queries of one shape."""
        first, counts = queries[0], [len(query.variants_RT) for query in queries]
        ids_BT = torch.cat([query.variants_RT for query in queries])
        pos_BT = torch.cat([query.places_T.expand(count, -1) for query, count in zip(queries, counts, strict=True)])
        mask: Mask = FULL if self.config.attends == "full" else Blocks(self.config.block)
        cache = None
        if first.keep or first.keys_K is not None:
            none = torch.zeros(0, dtype=torch.long)
            each = [(self.store(canvas), none if query.keys_K is None else query.keys_K, query)
                    for canvas, query, count in zip(canvases, queries, counts, strict=True) for _ in range(count)]
            rows = torch.arange(len(first.places_T))
            cache = Placed([store for store, _, _ in each], torch.stack([keys for _, keys, _ in each]),
                           [(rows, query.places_T) if query.keep else None for _, _, query in each])
        adapters = None if self.model.adapters is None else [
            canvas.sequence.adapter for canvas, count in zip(canvases, counts, strict=True) for _ in range(count)]
        out = self.model(ids_BT, pos_BT=pos_BT, mask=mask if first.mask is None else first.mask, cache=cache, logits=ALL,
                         adapters_B=adapters)
        return out.scores

    def _guesses(self, canvas: Canvas, query: Query, logits_RTV: Tensor) -> list[Guess]:
        """Each variant's guesses of its own open places, in the model's own positions."""
        if self.config.shifted:  # the logits of a place stand one row before it; the first row's are its own
            logits_RTV = torch.cat((logits_RTV[:, :1], logits_RTV[:, :-1]), 1)
        wide = logits_RTV if logits_RTV.dtype == torch.float64 else logits_RTV.float()
        wide[..., canvas.mask] = float("-inf")  # nobody commits an open place
        found = []
        for ids_T, logits_TV in zip(query.variants_RT, wide, strict=True):
            still = ids_T == canvas.mask
            law = canvas.sequence.law(logits_TV[still])
            found.append(Guess(query.places_T[still], law, self._tokens(canvas, law)))
        return found

    def _tokens(self, canvas: Canvas, law_PV: Tensor) -> Tensor:
        """The likeliest tokens, or drawn ones: the largest of logits and Gumbel noise."""
        if canvas.sequence.law.greedy:
            return law_PV.argmax(-1)
        return (law_PV.double() + canvas.sequence.dice.gumbel(law_PV.numel()).view(law_PV.shape)).argmax(-1)
