"""Drafts that copy, compiled: each a call for its guesses, and several of them asked, merged and learnt of by one.

After a pass the caches are full of weights, and Python is three to four times slower than warm: here texts and indices are
C's own, and Python hands over new tokens. Where kernels are off every function gives None: `ops.suffix`, `decode.grams` and the
methods have the same in Python.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from ctypes import addressof, c_double, c_int32, c_int64, c_void_p
from functools import cache, cached_property
from struct import Struct
from typing import Any

import numpy as np
from torch import Tensor

from lithe.kernels import draft, library
from lithe.kernels.draft import INT, Floats
from lithe.ops.tree import Tree

ASKED, SEEN = Struct("=qqiiii"), Struct("=qqqqiiii")  # of draft.h
HELD = 256  # bytes, and more than that, of what C keeps behind the settings of a draft


class SuffixStruct(ctypes.Structure):
    """Suffixes of copy.c, up to what is its own."""

    _fields_ = (("alpha", c_double), ("offset", c_double), ("floor", c_double), ("costs", c_void_p),
                *((name, c_int32) for name in ("cost_count", "depth", "most", "tree", "outputs", "limit")),
                ("held", c_int64 * (HELD // 8)))  # fmt: skip


class LookupStruct(ctypes.Structure):
    """Lookup of copy.c."""

    _fields_ = (*((name, c_int32) for name in ("ngram", "most", "last")), ("held", c_int64 * (HELD // 8)))


class RecycledStruct(ctypes.Structure):
    """Recycled of copy.c."""

    _fields_ = (*((name, c_void_p) for name in ("table", "slots", "right", "tested")),
                *((name, c_int32) for name in ("vocab", "k", "most", "slot_count", "levels", "accepted")))  # fmt: skip


class VoiceStruct(ctypes.Structure):
    """Voice of draft.h."""

    _fields_ = ("propose", c_void_p), ("seen", c_void_p), ("state", c_void_p), ("most", c_int32), ("voices", c_int32 * 2)


class Reader:
    """Hands over what is new of texts."""

    def __init__(self) -> None:
        self.read: dict[int, int] = {}  # by the text's number: tokens handed over
        self.packed = bytearray(ASKED.size)
        self.address = addressof(ctypes.c_char.from_buffer(self.packed))
        self.new = array("i")

    def ask(self, number: int, ids: list[int], most: int) -> None:
        start = self.read.get(number, 0)
        self.new = array("i", ids[start:])
        count = len(self.new)
        self.read[number] = start + count
        ASKED.pack_into(self.packed, 0, number, self.new.buffer_info()[0], start, count, ids[-1], most)

    def went_on(self) -> None:
        """What was asked has been followed by more, and C has noted how far it read."""
        number, _, start, *_ = ASKED.unpack(self.packed)
        self.read[number] = start


class Teller:
    """Hands over what a pass told of a tree."""

    def __init__(self) -> None:
        self.packed = bytearray(SEEN.size)
        self.address = addressof(ctypes.c_char.from_buffer(self.packed))
        self.held = array("i")

    def tell(self, tokens: list[int], path: Sequence[int], token: int, scores_NV: Tensor | Floats) -> bool:
        """Whether C can read the scores where they lie."""
        if isinstance(scores_NV, Floats):
            assert len(tokens) <= scores_NV.rows
            at, stride, width = scores_NV.address, scores_NV.width, scores_NV.width
        else:
            at, stride, width = draft.where(scores_NV) or (0, 0, 0)
        self.held = array("i", [*tokens, *path])
        first = self.held.buffer_info()[0]
        SEEN.pack_into(self.packed, 0, first, first + INT * len(tokens), at, stride, len(tokens), len(path), token, width)
        return at != 0


class Draft:
    """One draft that C makes. names: what its one or two voices are called, "" by the name of its method."""

    names: tuple[str, ...] = ("",)
    forgets: Any = None  # what C is to do about a text that has finished
    seen: Any = None

    def __init__(self, lib: ctypes.CDLL, struct: ctypes.Structure, propose: Any, most: int) -> None:
        self.lib, self.struct, self.state, self.function, self.most = lib, struct, addressof(struct), propose, most
        self.told, self.reader = array("i", bytes(INT * 3 * most)), Reader()
        self.said = self.told.buffer_info()[0]

    def propose(self, number: int, ids: list[int], most: int) -> Tree:
        """The tree of a text, by its number, down to `most` tokens."""
        size, told = self.function(self.state, self.ask(number, ids, most), self.said), self.told
        assert size >= 0
        name = self.says(told[2 * self.most])
        return Tree([ids[-1], *told[:size]], [-1, *told[self.most : self.most + size]],
                    sources=dict.fromkeys(range(1, size + 1), name) if name else {})

    def ask(self, number: int, ids: list[int], most: int) -> int:
        """Where the question lies, ready to be asked."""
        self.reader.ask(number, ids, most)
        return self.reader.address

    def says(self, voice: int) -> str:
        """What a voice is called."""
        return self.names[voice]

    @cached_property
    def alone(self) -> VoiceStruct:
        """It as the only one to be asked, for rounds in C."""
        return self.voice((0, 1))

    def begin(self, text: Any, most: int) -> int:
        """The first question of rounds in C about a text, which has a number and ids."""
        return self.ask(text.number, text.ids, most)

    def ended(self, text: Any, found: Sequence[int]) -> None:
        """They ended, so many tokens further: C knows how far it read."""
        self.reader.went_on()

    def forget(self, number: int = -1) -> None:
        """Drop a text, or every one."""
        if number < 0:
            self.reader.read.clear()
        self.reader.read.pop(number, None)
        if self.forgets is not None:
            self.forgets(self.state, number)

    def voice(self, bits: Sequence[int]) -> VoiceStruct:
        address = lambda function: None if function is None else ctypes.cast(function, c_void_p).value
        return VoiceStruct(propose=address(self.function), seen=address(self.seen), state=self.state, most=self.most,
                           voices=(bits[0], bits[-1]))


class Suffixes(Draft):
    """`ops.suffix.Suffixes`."""

    names = ("text", "outputs")

    def __init__(self, lib: ctypes.CDLL, *, most: int, costs: Sequence[float], **settings: Any) -> None:
        self.costs = array("d", costs)
        at = self.costs.buffer_info()[0] if costs else None
        struct = SuffixStruct(**settings, most=most, cost_count=len(costs), costs=at)
        super().__init__(lib, struct, lib.lithe_suffix, most)
        self.forgets = lib.lithe_suffix_forget
        lib.lithe_suffix_begin(self.state)
        weakref.finalize(self, _end, lib.lithe_suffix_end, struct)

    @property
    def states(self) -> int:
        return self.lib.lithe_suffix_states(self.state)

    def keep(self, tokens: Sequence[int]) -> None:
        given = array("i", tokens)
        self.lib.lithe_suffix_keep(self.state, given.buffer_info()[0], len(given))


class Lookup(Draft):
    """`decode.grams.Grams`, and the copy."""

    def __init__(self, lib: ctypes.CDLL, ngram: int, most: int, last: bool) -> None:
        struct = LookupStruct(ngram=ngram, most=most, last=last)
        super().__init__(lib, struct, lib.lithe_lookup, most)
        self.forgets = lib.lithe_lookup_forget
        weakref.finalize(self, _end, lib.lithe_lookup_end, struct)


class Recycled(Draft):
    """A table of candidates and a tree of ranks, both the method's own: table_VK, right_LK, tested_L as C writes to them."""

    def __init__(self, lib: ctypes.CDLL, table_VK: np.ndarray, right_LK: np.ndarray, tested_L: np.ndarray, most: int,
                 accepted: bool) -> None:
        assert table_VK.dtype == np.int32 and right_LK.dtype == tested_L.dtype == np.float64
        assert right_LK.shape == (len(tested_L), table_VK.shape[1]) and table_VK.shape[1] <= draft.MOST
        assert all(each.flags.c_contiguous for each in (table_VK, right_LK, tested_L))
        self.used, self.slots, self.teller = (table_VK, right_LK, tested_L), array("i"), Teller()
        struct = RecycledStruct(table=table_VK.ctypes.data, right=right_LK.ctypes.data, tested=tested_L.ctypes.data,
                                vocab=len(table_VK), k=table_VK.shape[1], most=most, levels=len(tested_L), accepted=accepted)
        super().__init__(lib, struct, lib.lithe_recycle, most)
        self.seen = lib.lithe_recycle_seen

    def shape(self, slots: Sequence[tuple[int, int, int]]) -> None:
        """The tree from now on: of each slot the one above it, its rank and its depth."""
        assert len(slots) <= self.most
        self.slots = array("i", [number for slot in slots for number in slot])
        self.struct.slots, self.struct.slot_count = self.slots.buffer_info()[0], len(slots)

    def learn(self, tokens: list[int], path: Sequence[int], token: int, scores_NV: Tensor | Floats) -> bool:
        """Whether candidates were noted as well; else the scores lie where C cannot read them."""
        noted = self.teller.tell(tokens, path, token, scores_NV)
        self.seen(self.state, self.teller.address)
        return noted


def _end(function: Any, struct: ctypes.Structure) -> None:
    function(addressof(struct))


def suffixes(**settings: Any) -> Suffixes | None:
    lib = _functions()
    return None if lib is None else Suffixes(lib, **settings)


def lookup(ngram: int, most: int, last: bool) -> Lookup | None:
    lib = _functions()
    return None if lib is None else Lookup(lib, ngram, most, last)


def recycled(table_VK: np.ndarray, right_LK: np.ndarray, tested_L: np.ndarray, most: int, accepted: bool) -> Recycled | None:
    lib = _functions()
    return None if lib is None else Recycled(lib, table_VK, right_LK, tested_L, most, accepted)


@cache
def _functions() -> ctypes.CDLL | None:
    found = library.load()
    if found is None or INT != 4:
        return None
    lib = found.lib
    propose = lib.lithe_suffix, lib.lithe_lookup, lib.lithe_recycle, lib.lithe_blend
    for function in propose:
        function.argtypes, function.restype = (c_void_p, c_void_p, c_void_p), c_int32
    lib.lithe_suffix_keep.argtypes = (c_void_p, c_void_p, c_int32)
    lib.lithe_suffix_states.argtypes, lib.lithe_suffix_states.restype = (c_void_p,), c_int32
    lib.lithe_recycle_seen.argtypes = lib.lithe_blend_seen.argtypes = (c_void_p, c_void_p)
    for forget in (lib.lithe_suffix_forget, lib.lithe_lookup_forget):
        forget.argtypes, forget.restype = (c_void_p, c_int64), None
    for function in (lib.lithe_suffix_begin, lib.lithe_suffix_end, lib.lithe_lookup_end):
        function.argtypes, function.restype = (c_void_p,), None
    lib.lithe_recycle_seen.restype = lib.lithe_suffix_keep.restype = lib.lithe_blend_seen.restype = None
    return lib
