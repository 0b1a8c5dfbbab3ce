"""What a canvas will hold in the end, known beforehand. Axes: T places, P foretold places."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lithe.diffuse.canvas import Canvas, Guess
from lithe.diffuse.loop import run
from lithe.diffuse.plain import Block
from lithe.diffuse.plan import plan
from lithe.model.decoder import Decoder
from lithe.sampling.sequence import Sequence

Watch = Callable[[Canvas, Guess, Block, Tensor], None]  # is told at each step which guesses are already right


@dataclass
class Foreseen:
    """An unmask policy that commits the guesses which equal the text's end (Learn2PD's extremely greedy decoding)."""

    final_T: Tensor
    watch: Watch | None = None

    def select(self, canvas: Canvas, guess: Guess, block: Block) -> Tensor:
        right_P = guess.tokens_P == self.final_T[guess.places_P]
        if self.watch is not None:
            self.watch(canvas, guess, block, right_P)
        return right_P


def again(sequence: Sequence) -> Sequence:
    """The same request from its beginning, greedy, to the last place."""
    return Sequence(sequence.ids[: sequence.prompt], limit=sequence.limit, context=sequence.prompt + sequence.limit + 1)


def foreseen(model: Decoder, sequences: Seq[Sequence], *methods: str) -> list[Tensor]:
    """The whole canvas of each, prompt and all, as one token a step fills it; methods: other parts, as of `plan`."""
    made = plan(model, *methods)
    for _ in run(made, [again(sequence) for sequence in sequences]):
        pass
    return [each.canvas.ids_T for each in made.runs]


def fill_with(model: Decoder, sequences: Seq[Sequence], parts: Seq[Any], *methods: str) -> list[Any]:
    """Fill canvases with an unmask part of its own for each, beside these methods; the runs."""
    made = plan(model, *methods)
    made.unmasks = iter(parts)
    for _ in run(made, list(sequences)):
        pass
    return made.runs
