"""Several drafts that copy, asked and merged by one call, and told by one. Without kernels `ops.merge` does the same."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import addressof, c_int32, c_void_p
from typing import Any

from torch import Tensor

from lithe.kernels import copying
from lithe.kernels.copying import Draft, Teller, VoiceStruct
from lithe.kernels.draft import INT, NODE, Floats
from lithe.ops.tree import Tree


class BlendStruct(ctypes.Structure):
    """Blend of copy.c."""

    _fields_ = (*((name, c_void_p) for name in ("all", "table", "costs", "nodes", "order")),
                *((name, c_int32) for name in ("many", "keep", "merged", "learns")))  # fmt: skip


class Blend(Draft):
    """Drafts asked at once, by way of a compiled merger, which names what each of them is called."""

    def __init__(self, merger: Any, drafts: Sequence[tuple[str, Any]], learns: bool) -> None:
        """learns: whether chances are."""
        self.merger, self.drafts, self.teller = merger, drafts, Teller()
        self.bits = [[merger.bit(said or name) for said in each.names] for name, each in drafts]
        self.voices = (VoiceStruct * len(drafts))(*[each.voice(b) for (_, each), b in zip(drafts, self.bits, strict=True)])
        self.chain = next((at for at, (_, each) in enumerate(drafts) if not isinstance(each, Draft)), None)
        table, times, order = merger.fixed[:3]
        struct = BlendStruct(all=addressof(self.voices), table=table, costs=times, order=order, many=len(drafts),
                             keep=len(merger.costs) - 1, learns=learns)
        super().__init__(merger.lib, struct, merger.lib.lithe_blend, struct.keep)
        self.seen = merger.lib.lithe_blend_seen
        self.room = INT * NODE * (1 + sum(each.most for _, each in drafts))
        self.unions: dict[int, tuple[array, int]] = {}  # by text, written anew each time it is asked for

    def ask(self, number: int, ids: list[int], most: int) -> int:
        """As a draft's, and where its nodes go."""
        nodes, _ = self.unions.setdefault(number, (array("i", bytes(self.room)), 0))
        self.struct.nodes = nodes.buffer_info()[0]
        return super().ask(number, ids, most)

    def propose(self, number: int, ids: list[int], most: int) -> Tree:
        """As `Merger.merge` of what the drafts say."""
        kept = self.function(self.state, self.ask(number, ids, most), self.said)
        assert kept >= 0
        self.unions[number] = self.unions[number][0], self.struct.merged
        return self.merger.tree_of(ids[-1], kept, self.told)

    def begin(self, text: Any, most: int) -> int:
        """As a draft's; 0 where the model among them cannot draft in C."""
        if self.chain is None:
            return super().begin(text, most)
        model, read = self.drafts[self.chain][1], self.reader.read.get(text.number, 0)
        cached = model.ready(text, most, read)
        if cached < 0:
            return 0
        self.voices[self.chain] = model.voice(self.bits[self.chain])
        if cached > read:  # all are asked about the same new tokens
            super().ask(text.number, text.ids[:cached], 0)
            for _, each in self.drafts:
                if each is not model:
                    each.function(each.state, self.reader.address, each.said)
        return self.ask(text.number, text.ids, most)

    def ended(self, text: Any, found: Sequence[int]) -> None:
        super().ended(text, found)
        if self.chain is not None:
            self.drafts[self.chain][1].ended(text, found)

    def leave(self, number: int) -> None:
        """Python asks each draft by itself from now on: what was read of the text here is dropped."""
        if number in self.reader.read:
            self.forget(number)
            for _, each in self.drafts:
                each.forget(number)

    def says(self, voice: int) -> str:
        return self.merger.named(voice)

    def learn(self, number: int, tokens: list[int], path: Sequence[int], token: int, scores_NV: Tensor | Floats) -> bool:
        """Of the chances and each draft of its own; whether C could read the scores."""
        nodes, self.struct.merged = self.unions[number]
        self.struct.nodes = nodes.buffer_info()[0]
        noted = self.teller.tell(tokens, path, token, scores_NV)
        self.seen(self.state, self.teller.address)
        return noted

    def forget(self, number: int = -1) -> None:
        """Drop a text, or every one; the drafts drop it apart."""
        for held in (self.reader.read, self.unions):
            held.clear() if number < 0 else held.pop(number, None)  # type: ignore[attr-defined]


def blend(merger: Any, drafts: Sequence[tuple[str, Any]], learns: bool) -> Blend | None:
    """None where a draft is not compiled, too, or several are models: all are asked about the same new tokens."""
    able = copying._functions() is not None and hasattr(merger, "lib") and all(each is not None for _, each in drafts)
    models = sum(not isinstance(each, Draft) for _, each in drafts)
    return Blend(merger, drafts, learns) if able and models < 2 else None
