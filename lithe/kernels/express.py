"""A whole pass in one call, from tokens or states to logits and taps, and what of it stays from pass to pass.

Axes: B sequences, T rows, C width, V vocabulary.

After a pass the caches are full of weights, and every call into PyTorch or NumPy costs 8 to 35 us: here it is one call into C.
`Decoder.forward` is the slow twin.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Container, Iterable, Sequence
from ctypes import addressof, byref, c_char, c_double, c_float, c_int32, c_void_p
from functools import partial
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lithe.kernels import library
from lithe.kernels.block import PassStruct, PlaceStruct, Stack
from lithe.kernels.pack import Packed


class ExpressStruct(ctypes.Structure):
    """Express of express.c."""

    _fields_ = (*((name, c_void_p) for name in ("embed", "end", "table", "legs", "rows", "halves", "ids", "start", "parents",
                                                "among", "sees", "norm", "bias", "x", "y", "taps")), ("eps", c_float),
                *((name, c_int32) for name in ("width", "ids_most", "leg_count", "row_count", "rounded", "first", "many",
                                               "threads", "final", "span", "tree")))  # fmt: skip


class LegStruct(ctypes.Structure):
    """Leg of express.c."""

    _fields_ = ("layers", c_void_p), ("places", c_void_p), *((name, c_int32) for name in ("count", "attn", "mlp", "tap"))


class RunStruct(ctypes.Structure):
    """Run of express.c."""

    _fields_ = (*((name, c_void_p) for name in ("first", "next", "ids", "pos", "lengths", "found", "ends")),
                ("floor", c_double), ("seconds", c_double),
                *((name, c_int32) for name in ("count", "most", "known", "end_count")))  # fmt: skip


class Goal(NamedTuple):
    """How far a run of likeliest tokens goes: `most` of them, or to where one of these comes first."""

    most: int
    ends: Sequence[int] = ()  # tokens behind which nothing follows, in whichever sequence
    floor: float = 0.0  # no token follows one whose chance was less
    seconds: float = 3600.0  # nor one found later than that
    known: int = 2**31 - 1  # only ids below count


class Course:
    """Which layers of a stack a pass runs, and where it is looked at: good for many passes."""

    def __init__(self, stack: Stack, order: Iterable[int], skip: Container[tuple[int, str]], taps: Sequence[int | str]):
        """skip: (layer, "attn" or "mlp") to leave out. taps: layers whose stream is kept; "final" is normed."""
        legs: list[list[int]] = []  # first layer, count, halves, tap
        for layer in order:
            assert 0 <= layer < len(stack.weights)
            halves = [(layer, "attn") not in skip, (layer, "mlp") not in skip]
            before = legs[-1] if legs else [0, 0, 0, 0, 0]
            if before[0] + before[1] == layer and before[2:] == [*halves, -1]:
                before[1] += 1
            elif any(halves) or layer in taps:
                legs.append([layer, int(any(halves)), *halves, -1])
            if layer in taps:
                legs[-1][-1] = taps.index(layer)
        self.ran = {tap for *_, tap in legs}
        self.final = taps.index("final") if "final" in taps else -1
        self.taps = {name: place for place, name in enumerate(taps) if place in self.ran or place == self.final}
        self.room, self.count = len(taps), len(legs)
        at, places, size = ctypes.addressof(stack.layer_array), ctypes.addressof(stack.place_array), ctypes.sizeof(PlaceStruct)
        made = [LegStruct(at + 8 * first, places + size * first, *rest) for first, *rest in legs]
        self.array = (LegStruct * len(legs))(*made)
        self.address = addressof(self.array)


class Form:
    """What follows from how many rows there are of how many sequences, and room for the numbers of such a pass."""

    def __init__(self, base: ExpressStruct, B: int, T: int):
        self.count = rows = B * T
        self.held = (array("B", bytes(rows * T)), array("i", range(0, rows + 1, T)),
                     array("i", [b for b in range(B) for _ in range(T)]), array("q", range(0, rows * T, T * T)))
        among, starts, owners, places = (held.buffer_info()[0] for held in self.held)
        packed = Struct(f"={2 * rows}q{B + rows}i")  # ids, positions, lengths and parents go in by one call
        self.numbers = bytearray(packed.size)
        self.note, self.alone = partial(packed.pack_into, self.numbers, 0), (-1,) * rows
        ids = addressof(c_char.from_buffer(self.numbers))
        self.rows = PassStruct(pos=ids + 8 * rows, lengths=ids + 16 * rows, starts=starts, spans=starts, owners=owners,
                               among_at=places, batch=B, groups=B, rows=rows)
        self.whole, at = ExpressStruct.from_buffer_copy(base), addressof(self.rows)
        for name, value in dict(rows=at, halves=at + PassStruct.attn.offset, sees=at + PassStruct.among.offset, ids=ids, span=T,
                                parents=ids + 16 * rows + 4 * B, among=among, row_count=rows).items():
            setattr(self.whole, name, value)
        self.pointer, self.said = byref(self.whole), ()

    def say(self, *said: Any) -> None:
        """What has changed since the last such pass; to set it each time would cost more than to compare."""
        whole, rows = self.whole, self.rows
        self.said = said
        course, whole.x, whole.y, whole.taps, whole.first, whole.many, whole.threads, whole.tree, whole.start = said
        rows.x, rows.out, rows.threads = whole.x, whole.x, whole.threads
        whole.legs, whole.leg_count, whole.final = course.address, course.count, course.final


class Kept:
    """Floats [rows, width] that passes write one over another."""

    def __init__(self, rows: int, width: int):
        self.rows, self.width, self.data = rows, width, torch.empty(rows, width)
        self.address, self.step = self.data.data_ptr(), width * self.data.element_size()
        self.shown = False  # whether somebody holds a tensor of them

    def view(self, B: int, T: int) -> Tensor:
        """The first ones as [B, T, width], for good: nothing may be written here any more."""
        self.shown = True
        made = self.data[: B * T].view(B, T, -1)
        return made.clone() if made.is_inference() and not torch.is_inference_mode_enabled() else made


class Express:
    """Layers with their caches, the embeddings before them and the head behind. Good for many passes."""

    def __init__(self, stack: Stack, embed: Packed | Tensor, end: Packed, norm_C: Tensor, eps: float, bias_V: Tensor | None, *,
                 rounded: bool, kernels: library.Library):
        """embed: packed, or a table [V, C]. rounded: embeddings are bfloat16, which packed ones are rounded to."""
        assert all(stack.layer_array) and end.k == stack.width == len(norm_C) and norm_C.dtype == torch.float32
        if isinstance(embed, Packed):
            width, given = embed.k, dict(embed=addressof(embed.struct), ids_most=embed.n)
        else:
            assert embed.is_contiguous() and embed.dtype == (torch.bfloat16 if rounded else torch.float32)
            width, given = embed.shape[1], dict(table=embed.data_ptr(), ids_most=len(embed))
        assert width == stack.width
        self.stack, self.kernels, self.end, self.used = stack, kernels, end, (embed, norm_C, bias_V)
        self.forms: dict[tuple[int, int], Form] = {}
        self.x, self.y, self.taps = Kept(0, 1), Kept(0, 1), Kept(0, 1)
        bias = None if bias_V is None else bias_V.data_ptr()
        self.base = ExpressStruct(**given, end=addressof(end.struct), norm=norm_C.data_ptr(), eps=eps, bias=bias, width=width,
                                  rounded=rounded)

    def room(self, rows: int, many: int, taps: int, held: bool) -> None:
        """Buffers for so many rows: new ones where somebody has tensors of the old, or holds what the last pass gave."""
        if held or self.x.shown or rows > self.x.rows:
            self.x = Kept(rows, self.stack.width)
        if held or self.y.shown or many > self.y.rows:
            self.y = Kept(many, self.end.n)
        if taps and (held or self.taps.shown or rows * taps > self.taps.rows):
            self.taps = Kept(rows * taps, self.stack.width)

    def run(self, course: Course, ids: Sequence[int], pos: Sequence[int], lengths: Sequence[int], T: int,
            parents: Sequence[int] | None, first: int, many: int, threads: int, start: Tensor | None = None) -> None:
        """T rows of each sequence, end to end in ids, pos and parents; logits of `many` rows from `first` on.

        parents: the row among its sequence's that each follows, or -1; None: a row sees those up to itself. start: states
        [B, T, C] of the rows, float32, in place of embeddings. Raises IndexError for an id that is none.
        """
        form = self._say(course, ids, pos, lengths, T, parents, first, many, threads, start)
        wrong = self.kernels.lib.lithe_express(form.pointer)
        if wrong >= 0:
            raise IndexError(f"there is no row {ids[wrong]} among {self.base.ids_most}")
        if wrong < -1:
            raise ValueError(f"no tree: parents must precede their children, not {parents}")

    def ahead(self, course: Course, ids: Sequence[int], pos: Sequence[int], lengths: Sequence[int], T: int, goal: Goal,
              threads: int) -> list[list[int]]:
        """The likeliest tokens in turn behind the last row of each sequence [B][n], the lowest of equals: a pass, then one
        over each token but the last. Of several sequences T is 1. Fewer than asked for where logits leave none. One sequence
        may be looked at in one place: its T rows, then each token's."""
        B, most = len(lengths), goal.most
        assert most > 0 and (B == 1 or T == 1) and max(pos) + most <= self.stack.positions
        assert max(lengths) + T + most - 1 <= self.stack.room
        assert not course.room or (B == course.room == 1 and T + most - 1 <= self.taps.rows)
        first = self._say(course, ids, pos, lengths, T, None, B * T - B, B, threads)
        last = [n + T - 1 for n in lengths]
        then = first if T == 1 else self._say(course, ids[-1:], pos[-1:], last, 1, None, 0, B, threads)
        found, ends, at = array("i", bytes(4 * most * B)), array("i", goal.ends), then.whole.ids
        run = RunStruct(first=addressof(first.whole), next=addressof(then.whole), ids=at, pos=at + 8 * B, lengths=at + 16 * B,
                        found=found.buffer_info()[0], ends=ends.buffer_info()[0], floor=goal.floor, seconds=goal.seconds,
                        count=B, most=most, known=min(goal.known, self.end.n), end_count=len(ends))
        steps = self.kernels.lib.lithe_run(byref(run))
        if steps < 0:
            raise IndexError(f"there is no row {ids[-1 - steps]} among {self.base.ids_most}")
        return [found[b : steps * B : B].tolist() for b in range(B)]

    def _say(self, course: Course, ids: Sequence[int], pos: Sequence[int], lengths: Sequence[int], T: int,
             parents: Sequence[int] | None, first: int, many: int, threads: int, start: Tensor | None = None) -> Form:
        """All that C reads of a pass, which then has but to begin."""
        stack, B = self.stack, len(lengths)
        if (form := self.forms.get((B, T))) is None:
            form = self.forms[B, T] = Form(self.base, B, T)
        rows = form.count
        assert len(ids) == len(pos) == rows <= self.x.rows and 0 <= first <= first + many <= rows and many <= self.y.rows
        assert 0 <= min(pos) <= max(pos) < stack.positions and max(lengths) + T <= stack.room and stack.batch >= B
        assert course.room * rows <= self.taps.rows
        form.note(*ids, *pos, *lengths, *(form.alone if parents is None else parents))
        if start is not None:
            assert start.dtype == torch.float32 and start.is_contiguous() and start.numel() == rows * stack.width
        said = (course, self.x.address, self.y.address, self.taps.address, first, many, threads, parents is not None,
                0 if start is None else start.data_ptr())
        if said != form.said:
            form.say(*said)
        return form
