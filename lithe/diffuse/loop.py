"""The one sampler loop of masked and block diffusion models.

    schedule.next -> refresh.query -> pass -> unmask.select or revise.advance -> commit -> stop.cut

A canvas is filled by a generator that yields what it asks of the model, so a batch of canvases shares passes while every method
sees one canvas at a time.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import torch

from lithe.diffuse.canvas import Canvas, Guess, most
from lithe.diffuse.passes import Query, Spent
from lithe.diffuse.plain import Block
from lithe.diffuse.plan import DiffusePlan, Kit
from lithe.errors import UnsupportedError, UsageError
from lithe.sampling.sequence import Sequence
from lithe.sampling.step import Step

Filling = Generator[Query, list[Guess], None]


def fill(kit: Kit, canvas: Canvas) -> Filling:
    """Fill a canvas: yields queries, is sent what they foretell. Every pass commits a token at least."""
    ahead: Guess | None = None
    while len(canvas.open()):
        block, looked = yield from _block(kit, canvas)
        ahead = looked or (None if hasattr(kit.refresh, "enter") else ahead)
        while len(canvas.open(*block)):
            fits = ahead is not None and len(ahead.within(*block).places_P)
            guess = ahead if ahead is not None and fits else (yield kit.refresh.query(canvas, block))[0]
            if kit.revise is not None:
                ahead = yield from kit.revise.advance(canvas, guess, block, kit)
            else:
                ahead = None
                commit(kit, canvas, guess, block)
            if (end := kit.stop.cut(canvas) if kit.stop else None) is not None and end < canvas.end:
                canvas.cut(end)
                ahead, block = None, (block[0], min(block[1], end))


def _block(kit: Kit, canvas: Canvas) -> Generator[Query, list[Guess], tuple[Block, Guess | None]]:
    """The next block, and the guess that was made to choose it: it is never wasted."""
    found, seen = kit.schedule.next(canvas, lambda: kit.refresh.query(canvas, None)), None
    if isinstance(found, Generator):
        try:
            ask = next(found)
            while True:
                seen = yield ask
                ask = found.send(seen)
        except StopIteration as done:
            found = done.value
    if hasattr(kit.refresh, "enter"):
        kit.refresh.enter(canvas, found)
    return found, seen[0] if seen else None


def commit(kit: Kit, canvas: Canvas, guess: Guess, block: Block) -> None:
    """Commit what the policy chooses of a guess, the surest token where it chooses none."""
    reach = kit.unmask.reach(canvas, block) if hasattr(kit.unmask, "reach") else block
    here = guess.within(*reach)
    if hasattr(kit.refresh, "active"):
        here = here.at(torch.isin(here.places_P, kit.refresh.active(canvas, block)))
    chosen = kit.unmask.select(canvas, here, block)
    settle(kit, canvas, here.at(chosen if bool(chosen.any()) else most(here.sure_P, 1)), block)


def settle(kit: Kit, canvas: Canvas, guess: Guess, block: Block) -> None:
    """Commit all of a guess."""
    if (canvas.ids_T[guess.places_P] != canvas.mask).any() or not len(guess.places_P):
        raise UsageError("a round commits open places, and at least one")
    canvas.commit(guess.places_P, guess.tokens_P, guess.sure_P)
    if hasattr(kit.refresh, "after"):
        kit.refresh.after(canvas, guess.places_P, block)


@dataclass
class Run:
    """A canvas under way."""

    canvas: Canvas
    filling: Filling
    query: Query | None
    spent: Spent = field(default_factory=Spent)


def run(plan: DiffusePlan, sequences: list[Sequence]) -> Iterator[Step]:
    """Passes until every sequence has finished: a Step a pass and sequence, with the text that became certain from the left."""
    plan.runs = runs = [begin(plan, sequence) for sequence in sequences]
    while alive := [each for each in runs if each.query is not None]:
        yield from _round(plan, alive)


def step(plan: DiffusePlan, sequences: list[Sequence]) -> list[Step]:
    """One pass for every sequence, none of which has finished. Who comes newly begins, who comes no more is forgotten."""
    known = {each.canvas.sequence.number: each for each in plan.runs}
    plan.runs = [known.pop(sequence.number, None) or begin(plan, sequence) for sequence in sequences]
    for gone in known.values():
        plan.reader.forget(gone.canvas)
    return _round(plan, plan.runs)


def check(plan: DiffusePlan, sequence: Sequence) -> None:
    """Raise for a request that no canvas can meet: what it asks for reads the text so far, or it brings open places."""
    if sequence.constraint is not None or sequence.law.reads_context:
        said = sequence.law if sequence.constraint is None else "a constraint"
        raise UnsupportedError(f"{said} reads the text from left to right, and a diffusion model fills places in any order: "
                               "leave it out")
    if plan.mask in sequence.ids:
        raise UsageError(f"token {sequence.ids.index(plan.mask)} of the prompt is the mask, which stands for an open place: is "
                         "it a word that this model does not know?")


def begin(plan: DiffusePlan, sequence: Sequence) -> Run:
    """A canvas for a request, before its first pass."""
    check(plan, sequence)
    canvas = Canvas.of(sequence, plan.mask)
    filling = fill(plan.kit(), canvas)
    with torch.inference_mode():
        return Run(canvas, filling, next(filling))


def _round(plan: DiffusePlan, alive: list[Run]) -> list[Step]:
    begun = perf_counter()
    with torch.inference_mode():
        found = plan.reader.run([r.canvas for r in alive], [r.query for r in alive if r.query], [r.spent for r in alive])
        passed = perf_counter()
        steps = [_advance(plan, each, guesses) for each, guesses in zip(alive, found, strict=True)]
    seconds = {"prefill": 0.0, "draft": 0.0, "verify": passed - begun, "walk": perf_counter() - passed, "observe": 0.0}
    for done in steps:
        done.seconds = seconds
    return steps


def _advance(plan: DiffusePlan, each: Run, guesses: list[Guess]) -> Step:
    """Go on with a canvas until its next query, and publish what is certain from the left."""
    canvas, sequence, query = each.canvas, each.canvas.sequence, each.query
    before = len(canvas.open())
    if plan.watch is not None:
        plan.watch(canvas, guesses[0])
    try:
        each.query = each.filling.send(guesses)
    except StopIteration:
        each.query = None
    each.spent.rounds.append(before - len(canvas.open()))
    step = Step(sequence, [], [], [], 0 if query is None else query.variants_RT.numel())
    for token in canvas.ids_T[len(sequence.ids) : canvas.begun()].tolist():
        if sequence.finished is None:
            step.pieces.append(sequence.push(token, plan.source))
            step.tokens.append(token)
            step.sources.append(plan.source)
    if sequence.finished is None and each.query is None:
        sequence.finished = "length"
    if sequence.finished is not None:
        each.query = None
        plan.reader.forget(canvas)
    return step
