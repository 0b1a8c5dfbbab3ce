"""The same problems by a model that reads from left to right, plainly or by a draft: what diffusion has to compare with."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from time import perf_counter
from typing import Any

from lithe.bench.parallel._suite import TOGETHER, Cell, Course, ask, words
from lithe.bench.parallel._tasks import Problem, room
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan
from lithe.model.decoder import Decoder
from lithe.sampling.law import Law


class Rival(Course):
    """A causal model and what is known of it so far. A cell's method is a spec of `lithe.decode`; "" is plain decoding."""

    def plan(self, cell: Cell) -> DecodePlan:
        return plan(self.model, draft=cell.method or None)

    def decoded(self, made: Any, asked: Seq[Problem], cell: Cell) -> dict[str, Any]:
        return decoded(self.model, made, asked, cell)

    def parts(self, made: Any) -> list[Any]:
        return made.parts


def decoded(model: Decoder, made: DecodePlan, asked: Seq[Problem], cell: Cell) -> dict[str, Any]:
    """What came out, counted as of a canvas: a pass is a round, and a prompt is read in the first. A text ends at its end of
    text, so its places are its words and that end.
    """
    law = Law.of(temperature=cell.temperature) if cell.temperature else None
    found: dict[str, Any] = {"right": "", "passes": [], "tokens": [], "places": 0, "rows": 0, "keys": 0, "experts": 0}
    begun, places = perf_counter(), cell.places or room(asked[0].task)
    for at in range(0, len(asked), TOGETHER):
        batch = [ask(model, p.prompt, places, law, cell.seed + at + i) for i, p in enumerate(asked[at : at + TOGETHER])]
        passes, rows = dict.fromkeys((s.number for s in batch), 0), sum(s.prompt - 1 for s in batch)
        for step in run(made, batch):
            passes[step.sequence.number] += 1
            rows += step.nodes
        for problem, sequence in zip(asked[at:], batch, strict=False):
            said = words(model, sequence)
            found["right"] += str(int(problem.right(said)))
            found["passes"].append(passes[sequence.number])
            found["tokens"].append(len(said))
            found["places"] += len(sequence.tokens)
        found["rows"] += rows
    return found | {"seconds": round(perf_counter() - begun, 4)}
