"""Passes of few rows over a plain cache, each one call: what `Lanes` and with it every draft and every round run.

Axes: B sequences, T rows, C width, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence as Seq
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lithe.kernels import express as compiled, library, rounds
from lithe.kernels.block import Stores
from lithe.kernels.draft import Floats
from lithe.model.decoder import ALL, LAST, NONE, Decoder, Output
from lithe.model.mask import CAUSAL, Causal, Mask, Tree

SIMPLE = (Causal, Tree)  # masks of rows that follow each other or one another
MOST = 64  # rows of a pass: of more its kernels take so long that nothing else matters, and buffers would grow


class Quick(Output):
    """What such a pass gives. Its buffers become the next pass's, unless a tensor of them was made or this is still held."""

    def __init__(self, made: compiled.Express, course: compiled.Course, B: int, T: int, many: int):
        self.made, self.x, self.y, self.kept, self.course = made, made.x, made.y, made.taps, course
        self.shape, self.answers = (B, T), many // B  # rows of a sequence that have logits

    @cached_property
    def logits(self) -> Tensor | None:  # type: ignore[override]
        return self.y.view(self.shape[0], self.answers) if self.answers else None

    @cached_property
    def hidden(self) -> Tensor:  # type: ignore[override]
        return self.x.view(*self.shape)

    @cached_property
    def taps(self) -> dict[int | str, Tensor]:  # type: ignore[override]
        if not self.course.taps:
            return {}
        B, T = self.shape
        every = self.kept.view(self.course.room * B, T).split(B)
        return {name: every[place] for name, place in self.course.taps.items()}

    def floats(self, b: int) -> Floats:
        """Where the logits of sequence b lie: until the next pass, unless this is still held."""
        y = self.y
        return Floats(y.address + b * self.answers * y.step, self.answers, y.width)

    def best(self, b: int, row: int) -> int:
        """The likeliest token behind a row of sequence b, the lowest of equals; -1 where its logits leave none."""
        assert 0 <= row < self.answers
        y = self.y
        return self.made.kernels.lib.lithe_best(y.address + (b * self.answers + row) * y.step, y.width)


class Ahead(NamedTuple):
    """Likeliest tokens in turn, and where they were looked at what each of one sequence was told from."""

    tokens_BN: list[list[int]]
    states_NC: Tensor | None


class Way:
    """The passes of one cache."""

    def __init__(self, made: compiled.Express, cache: Any, since: object):
        self.made, self.stores, self.laid, self.count = made, [*cache.k, *cache.v], cache.home.laid, len(cache.k)
        self.since = since  # the model's last change
        self.before: Any = lambda: None  # what the last pass gave, while somebody holds it
        self.courses: dict[tuple, compiled.Course | None] = {}
        self.rounds: rounds.Rounds | None = None  # of the draft that was last asked
        self.chains: dict[tuple, rounds.Chain] = {}
        self.all = compiled.Course(made.stack, range(self.count), (), ())

    def fits(self, since: object, home: Any, last: int, kernels: library.Library | None) -> bool:
        """Whether the model is as it was, the cache lies where it lay, and positions up to `last` have their rotations."""
        return (self.laid is home.laid and last < self.made.stack.positions and kernels is self.made.kernels
                and self.since is since)

    def course(self, layers: Iterable | None, skip: Iterable[tuple[int, str]], taps: Seq[int | str]) -> compiled.Course | None:
        """What of the model runs and is looked at, made once; None for what one call cannot do."""
        if layers is None and not skip and not taps:
            return self.all
        key = None if layers is None else tuple(layers), tuple(skip), tuple(taps)
        if key not in self.courses:
            order, known = range(self.count) if layers is None else key[0] or (), range(self.count)
            able = all(layer in known for layer in order) and all(tap == "final" or tap in known for tap in taps)
            self.courses[key] = compiled.Course(self.made.stack, order, frozenset(key[1]), key[2]) if able else None
        return self.courses[key]

    def run(self, course: compiled.Course, ids: list[list[int]], pos: list[list[int]], mask: Causal | Tree, lengths: list[int],
            logits: str, states: Seq[Tensor] | None = None) -> Quick:
        """One pass."""
        B, T, made = len(ids), len(ids[0]), self.made
        first, many = (0, B * T) if logits == ALL else (0, 0) if logits == NONE else (B * T - B, B)
        made.room(B * T, many, course.room, held=self.before() is not None)
        above = None if isinstance(mask, Causal) else joined([[*p, *[-1] * (T - len(p))] for p in mask.parents_B])
        start = None if states is None else (states[0] if B == 1 else pad_sequence(list(states), batch_first=True))
        start = None if start is None else start.detach().float().contiguous()
        made.run(course, joined(ids), joined(pos), lengths, T, above, first, many, library.threads(), start)
        out = Quick(made, course, B, T, many)
        self.before = weakref.ref(out)
        return out

    def ahead(self, course: compiled.Course, ids: list[list[int]], pos: list[list[int]], lengths: list[int],
              goal: compiled.Goal) -> Ahead:
        """Passes over likeliest tokens, as `kernels.express` has them."""
        B, T, made = len(ids), len(ids[0]), self.made
        made.room(B * T + goal.most - 1, B, course.room, held=self.before() is not None)
        found = made.ahead(course, joined(ids), joined(pos), lengths, T, goal, library.threads())
        states_RC = made.taps.view(1, T - 1 + len(found[0]))[0] if course.room and found[0] else None
        return Ahead(found, None if states_RC is None else states_RC[T - 1 :])


    def drafted(self, draft: Any, *asked: Any) -> list[rounds.Round]:
        """Rounds of the only sequence, as `kernels.rounds` has them."""
        made, rows = self.made, min(draft.most + 1, MOST)
        made.room(rows, rows, 0, held=self.before() is not None)
        if self.rounds is None or self.rounds.draft is not draft:
            self.rounds = rounds.Rounds(made, Stores([store[0] for store in self.stores if store is not None]), draft, rows)
        return self.rounds.run(self.all, library.threads(), *asked)

    def chain(self, most: int, known: int, floor: float, read: int) -> rounds.Chain:
        """This as a model that drafts for another: the text up to `read` is cached."""
        self.made.room(MOST, 1, 0, held=self.before() is not None)
        if (made := self.chains.get((most, known, floor))) is None:
            made = self.chains[most, known, floor] = rounds.Chain(self.made, most, MOST, known, floor)
        made.say(self.all, library.threads(), read)
        return made


class Ways:
    """What a `Fast` can do in one call, which keeps a `Way` with each cache."""

    model: Decoder
    _since: object

    def express(self, ids: list[list[int]], pos: list[list[int]], mask: Mask, cache: Any, logits: str,
                taps: Seq[int | str] = (), layers: Iterable | None = None, skip: Iterable[tuple[int, str]] = (),
                states: Seq[Tensor] | None = None) -> Quick | None:
        """What `Decoder.forward` gives of few rows [B][T]; None where it must go the long way."""
        B, T = len(ids), len(ids[0])
        if not T or not isinstance(mask, SIMPLE) or (logits == LAST and B > 1 and T > 1):  # rows here and there
            return None
        way = self._kept(cache, B * T, max(map(max, pos)))
        if way is None or (course := way.course(layers, skip, taps)) is None:
            return None
        cache.reserve(T)
        return way.run(course, ids, pos, mask, cache.lengths, logits, states)

    def ahead(self, ids: list[list[int]], pos: list[list[int]], cache: Any, goal: compiled.Goal, taps: Seq[int | str] = (),
              layers: Iterable | None = None, skip: Iterable[tuple[int, str]] = ()) -> Ahead | None:
        """The likeliest tokens in turn behind rows [B][T] that follow each other; None where single passes must find them."""
        B, T = len(ids), len(ids[0])
        able = T > 0 and not (B > 1 and (T > 1 or taps)) and len(taps) <= 1
        way = self._kept(cache, B * T, max(map(max, pos)) + goal.most - 1) if able else None
        if way is None or (course := way.course(layers, skip, taps)) is None:
            return None
        cache.reserve(T + goal.most - 1)
        return way.ahead(course, ids, pos, cache.lengths, goal)

    def drafted(self, cache: Any, draft: Any, asked: int, left: int, *how: Any) -> list[rounds.Round]:
        """Rounds of a cache's only sequence, of which so many tokens may still come; none where Python must take them."""
        way = self._kept(cache, 1, cache.lengths[0] + left - 1)
        return [] if way is None else way.drafted(draft, asked, cache.lengths[0], left, *how)

    def chain(self, cache: Any, last: int, most: int, known: int, floor: float) -> rounds.Chain | None:
        """The model as one that drafts for a cache's only sequence, down to a last position."""
        way = self._kept(cache, 1, last)
        return None if way is None else way.chain(most, known, floor, cache.lengths[0])

    def _kept(self, cache: Any, rows: int, last: int) -> Way | None:
        """The way of passes over a cache, of so many rows, none past position `last`; None where there is none."""
        if not 0 < rows <= MOST or self.model.adapters is not None:
            return None
        kernels, home = library.load(), cache.home
        way = getattr(home, "way", None)
        if way is None or not way.fits(self._since, home, last, kernels):
            way = home.way = self._way(cache, last, kernels)
        return way

    def _way(self, cache: Any, last: int, kernels: library.Library | None) -> Way | None:
        raise NotImplementedError


def quickest(model: Decoder, ids: list[list[int]], cache: Any, logits: str = ALL) -> Output:
    """A causal pass behind a cache as decoding runs it: for measuring, as the loop goes by way of `Lanes`."""
    pos = [list(range(n, n + len(row))) for n, row in zip(cache.lengths, ids, strict=True)]
    made = None if model.fast is None else model.fast.express(ids, pos, CAUSAL, cache, logits)
    return model(torch.tensor(ids, device=model.device), cache=cache, logits=logits) if made is None else made


def joined(rows: list[list[int]]) -> list[int]:
    return rows[0] if len(rows) == 1 else list(chain(*rows))
