"""One pass for a whole turn: trees of those that decode and pieces of prompts, end to end. Axes: N rows of a tree, V tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor

from lithe.decode.loop import Round, Step, settle
from lithe.decode.told import Told
from lithe.errors import LitheError
from lithe.model.decoder import ALL, NONE, Decoder, Output
from lithe.model.mask import CAUSAL, Tree as TreeMask, whole
from lithe.model.paged import PagedCache, Pages, Share
from lithe.ops.tree import Tree
from lithe.serve.job import BrokenMethod, Desk, Job, logprobs


@dataclass
class Part:
    """What a turn holds of one job: a piece of its prompt, or a tree. answers: rows whose logits are wanted."""

    job: Job
    ids: list[int]
    tree: Tree | None  # what to walk when the pass is done: of the last row alone where a prompt ends with it
    answers: range
    reads: bool  # a piece of its prompt
    start: int = 0  # the first of its rows in the pass, and
    answer: int = 0  # the first of its logits

    @classmethod
    def of(cls, job: Job, rows: int) -> Part:
        """The job's tree where it decodes, else so many tokens of its prompt."""
        if not job.left:
            tree = job.tree or Tree.root(job.sequence.ids[-1])
            return cls(job, tree.tokens, tree, range(len(tree)), False)
        ids = job.sequence.ids
        piece = ids[job.length : job.length + rows]
        ends = job.length + rows == len(ids)
        return cls(job, piece, Tree.root(ids[-1]) if ends else None, range(0 if job.echoes else rows - ends, rows), True)


@dataclass
class Turn:
    """What came of a turn."""

    rows: int = 0
    seconds: float = 0.0
    jobs: list[Job] = field(default_factory=list)  # all that took part
    steps: list[tuple[Job, Step, Round]] = field(default_factory=list)
    read: list[Job] = field(default_factory=list)  # that read a piece of their prompt
    failed: list[tuple[Job, str]] = field(default_factory=list)  # and why
    broken: list[BrokenMethod] = field(default_factory=list)


def take(model: Decoder, store: Pages, share: Share | None, taken: list[tuple[Any, int]]) -> Turn:
    """Run what a schedule took into a turn, walk the trees, and keep the rows that stay."""
    begun = perf_counter()
    parts = [Part.of(job, rows) for job, rows in taken]
    cache = PagedCache(store, [part.job.table for part in parts], share)
    out = _pass(model, cache, parts)
    jobs, read = [part.job for part in parts], [part.job for part in parts if part.reads]
    done = Turn(rows=sum(len(part.ids) for part in parts), jobs=jobs, read=read)
    for part in parts:
        _read(part, out)
    kept: dict[int, int | list[int]] = {id(part): len(part.ids) for part in parts}
    found: dict[Desk, list[Round]] = {}
    for part in parts:
        if part.tree is not None and (one := _settle(part, out, done)) is not None:
            kept[id(part)] = len(part.ids) if part.reads else [0, *one.walk.path]
            found.setdefault(part.job.desk, []).append(one)
    cache.commit([kept[id(part)] for part in parts])
    for desk, rounds in found.items():
        if desk.plan.draft is not None:
            try:
                desk.plan.draft.observe(rounds)
            except Exception as problem:
                done.broken.append(BrokenMethod(desk, problem))
    done.seconds = perf_counter() - begun
    return done


def _settle(part: Part, out: Output, done: Turn) -> Round | None:
    """Walk one tree. What one text's rule or constraint cannot do is no fault of the others."""
    assert part.tree is not None
    job, tree, end = part.job, part.tree, part.start + len(part.ids)
    taps = {name: out.taps[name][end - len(tree) : end, 0] for name in job.desk.plan.taps}
    job.tree = None
    try:
        rounds, steps = settle(job.desk.plan, [job.sequence], [tree], [Told(_logits(part, out, len(tree)))], [taps])
    except LitheError as problem:
        done.failed.append((job, str(problem)))
        return None
    done.steps.append((job, steps[0], rounds[0]))
    return rounds[0]


def _pass(model: Decoder, cache: PagedCache, parts: list[Part]) -> Output:
    pos: list[list[int]] = []
    parents: list[list[int]] = []
    wanted: list[int] = []
    for part in parts:
        part.start, part.answer, before = len(pos), len(wanted), part.job.length
        tree = None if part.reads else part.tree
        depths = range(len(part.ids)) if tree is None else tree.depths
        pos += [[before + depth] for depth in depths]
        parents.append(list(range(-1, len(part.ids) - 1)) if tree is None else tree.parents)
        wanted += [part.start + row for row in part.answers]
    chains = all(part.reads or part.tree is None or len(part.ids) == 1 for part in parts)
    taps = {tap for part in parts for tap in part.job.desk.plan.taps}
    adapters = None if model.adapters is None else [part.job.sequence.adapter for part in parts for _ in part.ids]
    ids = whole([[token] for part in parts for token in part.ids], model.device)
    every = len(wanted) == len(pos)  # to choose all rows would cost more than some of them
    return model(ids, pos_BT=pos, counts=[len(part.ids) for part in parts], mask=CAUSAL if chains else TreeMask(parents),
                 cache=cache, logits=ALL if every else wanted if wanted else NONE, taps=taps, adapters_B=adapters)


def _logits(part: Part, out: Output, last: int) -> Tensor:
    """Of the last of those rows of a part that were asked for, [N, V]."""
    end = part.answer + len(part.answers)
    return out.scores.select(1, 0).narrow(0, end - last, last)


def _read(part: Part, out: Output) -> None:
    """Keep what a piece of a prompt gives beside keys and values: states for the draft, log probabilities."""
    job, start = part.job, part.job.length
    if not part.reads:
        return
    if job.desk.reads is not None:
        rows = slice(part.start, part.start + len(part.ids))
        job.states.append((start, {name: out.taps[name][rows, 0].clone() for name in job.desk.plan.taps}))
    if job.prompt_logprobs is not None:
        after = job.sequence.ids[start + 1 : min(start + len(part.ids) + 1, job.sequence.prompt)]
        new = max(0, len(job.prompt_logprobs) - 1 - start)  # what was read before a preemption is known
        rows_NV = _logits(part, out, len(part.answers))[new : len(after)]
        job.prompt_logprobs += logprobs(rows_NV, after[new:], job.request.logprobs or 0)
