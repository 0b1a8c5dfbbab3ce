"""Lanes: one row of a cache for each sequence under way, for the target and for every model that drafts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence as Seq
from time import perf_counter
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lithe.kernels.express import Goal
from lithe.kernels.rounds import Round
from lithe.model.cache import PlainCache
from lithe.model.decoder import LAST, Decoder, Output
from lithe.model.express import Ahead
from lithe.model.mask import CAUSAL, Mask, whole
from lithe.sampling.sequence import Sequence

CHUNK = 512  # rows of a prefill pass: bounds the memory of scores and hidden states
STEP = 256  # slots are added in steps, so that a growing text does not move its cache each round


class Lanes:
    """Keeps a cache in step with a changing set of sequences."""

    def __init__(self, model: Decoder, *, slack: int = 64):
        """slack: slots beyond the longest text, for draft rows that will never be committed."""
        self.model, self.slack = model, slack
        self.cache = PlainCache.like(model, batch=0, capacity=slack)
        self.device, self.mode = model.device, torch.inference_mode()
        self.furthest = model.config.context - 1
        self.now: Callable[[], float] = _waited if self.device.type == "cuda" else perf_counter
        self.held: list[Sequence] = []
        self.ids: list[list[int]] = []  # what each lane's committed slots hold

    def sync(self, sequences: Seq[Sequence]) -> bool:
        """Give every sequence its lane, in this order; forget the others; roll back what is no longer in the text.

        Returns whether some lane lacks tokens before the last one.
        """
        if self.held != sequences:
            self._assign(sequences)
        lengths = [_shared(ids, sequence.ids) for ids, sequence in zip(self.ids, sequences, strict=True)]
        if lengths != self.cache.lengths:
            self.cut(lengths)
        return [len(sequence.ids) - 1 for sequence in sequences] != lengths

    def cut(self, lengths: Seq[int]) -> None:
        """Forget what lies past these many tokens of each lane."""
        self.cache.truncate(lengths)
        self.ids = [ids[:n] for ids, n in zip(self.ids, lengths, strict=True)]

    def _assign(self, sequences: Seq[Sequence]) -> None:
        """Lanes in a new order, and room for the longest."""
        longest = max((min(s.prompt + s.limit, self.model.config.context) for s in sequences), default=0)
        if longest + self.slack > self.cache.capacity:  # as long as asked for: a whole context may be far larger
            self.cache.grow(-(-longest // STEP) * STEP + self.slack)
        place = {id(held): lane for lane, held in enumerate(self.held)}
        order = [place.get(id(sequence), -1) for sequence in sequences]
        self.cache.keep(order)
        self.ids = [self.ids[lane] if lane >= 0 else [] for lane in order]
        self.held = list(sequences)

    def prefill(self, taps: Seq[int | str] = (), read: Callable | None = None) -> None:
        """Cache every committed token but the last of each sequence, in chunks.

        read(sequences, starts, counts, taps) is told of every chunk: whose, from which place, how many rows, the taps.
        """
        while rows := max((len(s.ids) - 1 - n for s, n in zip(self.held, self.cache.lengths, strict=True)), default=0):
            rows = min(rows, CHUNK, self.cache.capacity - max(self.cache.lengths))  # padding of the longest must fit as well
            pieces = [s.ids[n : min(n + rows, len(s.ids) - 1)] for s, n in zip(self.held, self.cache.lengths, strict=True)]
            starts, counts = list(self.cache.lengths), [len(piece) for piece in pieces]
            out = self.run(pieces, logits="none", taps=taps if read else ())
            if read is not None:
                read(self.held, starts, counts, out.taps)
            self.commit(counts)

    def run(self, ids: Seq[Seq[int]], *, mask: Mask = CAUSAL, depths: Seq[Seq[int]] | None = None, logits=LAST,
            taps: Seq[int | str] = (), layers: Iterable | None = None, skip: Iterable[tuple[int, str]] = (),
            states: Seq[torch.Tensor] | None = None) -> Output:
        """One pass over unequal numbers of rows, padded on the right. depths[b]: steps of each row past the cache.

        layers, skip: the parts of the model that run, as `Decoder.forward` has them. states[b]: what the layers before those
        made of the rows, [T, C].
        """
        fast, width = self.model.fast, max([len(row) for row in ids])
        self.last = [list(row) for row in ids]
        full = [row if len(row) == width else [*row, *[0] * (width - len(row))] for row in self.last]
        pos = self._positions(width, depths)
        quick = None if fast is None else fast.express(full, pos, mask, self.cache, logits, taps, layers, skip, states)
        if quick is not None:
            return quick
        ids_BT = whole(full, self.device)
        adapters_B = None if self.model.adapters is None else [s.adapter for s in self.held]
        given = {"ids_BT": ids_BT} if states is None else {"embeds": pad_sequence(list(states), batch_first=True)}
        with self.mode:
            return self.model(**given, pos_BT=pos, mask=mask, cache=self.cache, rows=[max(len(row), 1) for row in ids],
                              logits=logits, taps=taps, layers=layers, skip=skip, adapters_B=adapters_B)

    def ahead(self, ids: Seq[Seq[int]], goal: Goal, *, taps: Seq[int | str] = (), layers: Iterable | None = None,
              skip: Iterable[tuple[int, str]] = ()) -> Ahead | None:
        """The likeliest tokens in turn behind each sequence's rows, by one call; None where single passes must do it.

        Commits the rows and all of the tokens but the last, as so many passes would. taps: of one sequence, one place.
        """
        fast, width, rows = self.model.fast, len(ids[0]), [list(row) for row in ids]
        last = max(self.cache.lengths) + width + goal.most - 2
        if fast is None or last > self.furthest or any([len(row) != width for row in rows]):
            return None
        found = fast.ahead(rows, self._positions(width, None), self.cache, goal, taps, layers, skip)
        if found is None or not found.tokens_BN[0]:
            return None
        self.last = [[*row, *more[:-1]] for row, more in zip(rows, found.tokens_BN, strict=True)]
        self.commit([len(row) for row in self.last])
        return found

    def drafted(self, draft: Any, asked: int, left: int, most: int, ends: Seq[int], seconds: float) -> list[Round]:
        """Rounds of the only sequence by one call, committed; none where Python must take the next one. As `kernels.rounds`."""
        fast, sequence = self.model.fast, self.held[0]
        found = [] if fast is None else fast.drafted(self.cache, draft, asked, left, most, ends, seconds)
        if found:
            self.ids[0] = sequence.ids + [token for one in found for token in one.tokens]
            self.cache.lengths[0] = len(self.ids[0]) - 1
            del self.ids[0][-1]
        return found

    def _positions(self, width: int, depths: Seq[Seq[int]] | None) -> list[list[int]]:
        """Where the rows of a pass stand; what lies past the context is padding, and stands on its last place."""
        lengths, last = self.cache.lengths, self.furthest
        if depths is None and max(lengths) + width <= last:
            return [list(range(n, n + width)) for n in lengths]
        steps = [range(width)] * len(lengths) if depths is None else [[*d, *[0] * (width - len(d))] for d in depths]
        return [[min(n + step, last) for step in row] for n, row in zip(lengths, steps, strict=True)]

    def commit(self, rows: Seq[int | Seq[int]]) -> None:
        """Keep rows of the last pass, as `Cache.commit` does."""
        self.cache.commit(rows)
        for ids, last, kept in zip(self.ids, self.last, rows, strict=True):
            ids.extend(last[:kept] if isinstance(kept, int) else [last[row] for row in kept])


def _waited() -> float:
    """The time once a GPU has done all that was asked of it: it runs behind, and one part's time would be told as another's."""
    torch.cuda.synchronize()
    return perf_counter()


def _shared(cached: list[int], ids: list[int]) -> int:
    """Length of the common beginning, the last id left out; what was long committed is compared in one stroke."""
    n = min(len(cached), len(ids) - 1)
    if (cached if len(cached) == n else cached[:n]) == ids[:n]:
        return n
    return next(i for i in range(n) if cached[i] != ids[i])
