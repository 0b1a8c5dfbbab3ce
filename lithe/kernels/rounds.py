"""Rounds of one greedy text by one call: a compiled draft is asked, a pass reads its tree, and what comes true is kept.

`decode.loop` has the same round by round, whose Python takes some 100 us between two passes, caches being full of weights.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import addressof, byref, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

from lithe.kernels.block import PassStruct, Stores
from lithe.kernels.copying import VoiceStruct
from lithe.kernels.draft import INT
from lithe.kernels.express import Course, Express, Form

MOST = 8  # rounds of a call


class SlateStruct(ctypes.Structure):
    """Slate of rounds.c."""

    _fields_ = (*((name, c_void_p) for name in ("whole", "ids", "pos", "lengths", "parents", "starts", "rows")),
                *((name, c_int32) for name in ("most", "room", "positions")))  # fmt: skip


class StoresStruct(ctypes.Structure):
    """Stores of rounds.c."""

    _fields_ = *((name, c_void_p) for name in ("stores", "strides", "heads", "sizes")), ("count", c_int64)


class RoundStruct(ctypes.Structure):
    """Round of rounds.c."""

    _fields_ = *((name, c_float) for name in ("draft", "verify", "walk", "observe")), ("tokens", c_int32), ("nodes", c_int32)


class RoundsStruct(ctypes.Structure):
    """Rounds of rounds.c."""

    _fields_ = (*((name, c_void_p) for name in ("draft", "slate", "stores", "asked", "told", "found", "voices", "rounds",
                                                "ends")), ("seconds", c_double),
                *((name, c_int32) for name in ("length", "left", "most", "end_count")))  # fmt: skip


class ChainStruct(ctypes.Structure):
    """Chain of rounds.c."""

    _fields_ = (*((name, c_void_p) for name in ("wide", "single", "guesses")), ("floor", c_double),
                *((name, c_int32) for name in ("most", "known", "read", "held")))  # fmt: skip


class Round(NamedTuple):
    """What one round found: tokens, and who guessed each, -1 being nobody; rows of its pass; seconds by part."""

    tokens: list[int]
    voices: list[int]
    nodes: int
    seconds: dict[str, float]


class Slate:
    """A pass of one text whose rows C writes down itself: at most so many."""

    def __init__(self, made: Express, rows: int):
        self.made, self.form, stack = made, Form(made.base, 1, rows), made.stack
        whole, numbers = self.form.whole, self.form.rows
        self.struct = SlateStruct(
            whole=addressof(whole), ids=whole.ids, pos=numbers.pos, lengths=numbers.lengths, parents=whole.parents,
            starts=numbers.starts, rows=addressof(numbers) + PassStruct.rows.offset, most=rows, room=stack.room,
            positions=stack.positions)  # fmt: skip

    def say(self, course: Course, threads: int) -> None:
        """Where buffers lie now."""
        made = self.made
        said = course, made.x.address, made.y.address, made.taps.address, 0, 1, threads, False, 0
        if said != self.form.said:
            self.form.say(*said)


class Rounds:
    """A draft over one text's lane: good for many calls."""

    def __init__(self, made: Express, stores: Stores, draft: Any, rows: int):
        """draft: as `copying.Draft`. rows: most of a pass."""
        self.lib, self.slate, self.stores, self.draft = made.kernels.lib, Slate(made, rows), stores, draft
        self.done = (RoundStruct * MOST)()
        self.told, room = array("i", bytes(INT * 3 * draft.most)), MOST * (draft.most + 1)
        self.found, self.voices = array("i", bytes(INT * room)), array("i", bytes(INT * room))
        self.moves = StoresStruct(*(ctypes.addressof(each) for each in (stores.data, stores.strides, stores.heads,
                                                                        stores.sizes)), stores.count)
        self.struct = RoundsStruct(
            slate=addressof(self.slate.struct), stores=addressof(self.moves),
            told=self.told.buffer_info()[0], rounds=addressof(self.done))  # fmt: skip

    def run(self, course: Course, threads: int, asked: int, length: int, left: int, most: int, ends: Sequence[int],
            seconds: float) -> list[Round]:
        """At most so many rounds, none where Python must take the next one.

        asked: where the first question lies. length: cached tokens. left: how many may still come. seconds: no round
        follows one that ended later.
        """
        assert 0 < most <= MOST and left > 0
        self.slate.say(course, threads)
        struct, held = self.struct, array("i", ends)
        struct.draft = addressof(self.draft.alone)
        struct.asked, struct.found, struct.voices = asked, self.found.buffer_info()[0], self.voices.buffer_info()[0]
        struct.ends, struct.end_count, struct.seconds = held.buffer_info()[0], len(held), seconds
        struct.length, struct.left, struct.most = length, left, most
        rounds, at = [], 0
        for done in self.done[: self.lib.lithe_rounds(byref(struct))]:
            end = at + done.tokens
            rounds.append(Round(self.found[at:end].tolist(), self.voices[at:end].tolist(), done.nodes, dict(
                draft=done.draft, verify=done.verify, walk=done.walk, observe=done.observe)))
            at = end
        return rounds


class Chain:
    """A model that drafts the likeliest tokens in turn."""

    def __init__(self, made: Express, most: int, rows: int, known: int, floor: float):
        """rows: most that it reads at once. known: ids that count. floor: none follows one less likely."""
        self.made, self.wide, self.single = made, Slate(made, rows), Slate(made, 1)
        self.guesses = array("i", bytes(INT * most))
        self.struct = ChainStruct(
            wide=addressof(self.wide.struct), single=addressof(self.single.struct), guesses=self.guesses.buffer_info()[0],
            floor=floor, most=most, known=min(known, made.end.n))  # fmt: skip
        function = ctypes.cast(made.kernels.lib.lithe_chain, c_void_p).value
        self.alone = VoiceStruct(propose=function, state=addressof(self.struct), most=most)

    def say(self, course: Course, threads: int, read: int) -> None:
        """The text up to there is cached, and nothing behind it."""
        self.wide.say(course, threads)
        self.single.say(course, threads)
        self.struct.read, self.struct.held = read, 0

    @property
    def cached(self) -> tuple[int, list[int]]:
        """How much of the text is cached, and which guesses behind it."""
        return self.struct.read, self.guesses[: self.struct.held].tolist()
