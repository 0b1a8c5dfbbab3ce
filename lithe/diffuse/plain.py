"""The plain parts of the loop: one block, all of it recomputed each pass, the surest token committed. Methods replace them."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from lithe.diffuse.canvas import Canvas, Guess, most
from lithe.diffuse.passes import Query

Block = tuple[int, int]  # first place, one past the last
Look = Generator[Query, list[Guess], Block]


class Whole:
    """Everything that is open is one block; a model trained on blocks takes them one after the other."""

    def __init__(self, size: int = 0):
        self.size = size

    def next(self, canvas: Canvas, ask: Callable[[], Query]) -> Look | Block:
        start = canvas.begun()
        return start, min(canvas.end, start - start % self.size + self.size) if self.size else canvas.end


class Anew:
    """Nothing is kept between passes."""

    def __init__(self, blockwise: bool = False):
        self.blockwise = blockwise

    def query(self, canvas: Canvas, block: Block | None) -> Query:
        """The pass before the next commit in a block; None: over the whole canvas, before a block is chosen."""
        end = block[1] if block and self.blockwise else canvas.end  # later blocks are seen by nobody
        return Query(torch.arange(end), canvas.ids_T[None, :end])


class Surest:
    """One token a step: the reference of quality."""

    def select(self, canvas: Canvas, guess: Guess, block: Block) -> Tensor:
        """Which guesses are committed, boolean [P]."""
        return most(guess.sure_P, 1)
