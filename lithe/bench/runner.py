"""Methods beside plain decoding: the same prompts, side by side, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from lithe.bench import by_kind, quiet
from lithe.bench.held import held_mb
from lithe.bench.ledger import Ledger, Record
from lithe.bench.measure import Run, measure
from lithe.bench.provenance import record
from lithe.bench.rows import Row, fill
from lithe.decode.generate import request
from lithe.decode.plan import DecodePlan, plan
from lithe.errors import LitheError, UsageError
from lithe.model.decoder import Decoder
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

WARM_UP = 8  # tokens of each method before the clock counts
OFTEN = 4  # methods after which plain decoding runs again, where that is asked for

Prompt = str | Seq[int]
Progress = Callable[[int, int], None]


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a run: `rows` hold what was finished."""

    def __init__(self, rows: list[Row]):
        super().__init__()
        self.rows = rows


def bench(model: Decoder, methods: Iterable[str] = (), prompts: Iterable[Prompt] = (), *, max_tokens: int = 128,
          kinds: Seq[str] = (), repeats: int = 1, accept: str | None = None, batch: int = 1, seed: int = 0,
          ignore_eos: bool = False, warps: Seq[str] = (), ledger: Ledger | None = None, part: str | None = None,
          progress: Progress | None = None, often: bool = False, **settings: Any) -> list[Row]:
    """Measure methods beside plain decoding, which is always the first row.

    methods: specs of drafts or tree policies. prompts: texts or token ids. kinds: of each prompt, where figures of each kind
    are wanted too. batch: prompts decoded together. accept, warps, settings: as for `generate`. ledger: where each row is
    kept; part: under which name. progress: called with groups of prompts done and in all. often: plain decoding, by which all
    is divided, runs again after every few methods, and its seconds are the mean. What is not legal raises before anything
    runs; a method that fails later has its error in its row. Raises Stopped on Ctrl-C.

    Every group of prompts is run by all methods before the next one is, in an order that rotates. Each repeat starts from new
    plans, so that no method meets a prompt that it has already answered.
    """
    course = Course(model=model, prompts=list(prompts), kinds=kinds, max_tokens=max_tokens, repeats=repeats, batch=batch,
                    accept=accept, seed=seed, ignore_eos=ignore_eos, law=Law.of(*warps, **settings))
    contestants = _enter(course, methods)
    before, stopped = quiet.listen(), False
    _each(contestants, lambda c: measure(c.make(), [course.ask(0, most=min(WARM_UP, max_tokens))]))
    try:
        _race(contestants, course, progress or (lambda done, total: None), OFTEN if often else len(contestants))
    except KeyboardInterrupt:
        stopped = True
    _even(contestants)
    rows = _rows(contestants, course, quiet.worse(before, quiet.listen()), stopped)
    for c, row in zip(contestants, rows, strict=True):
        if ledger is not None and (row.prompts or row.error):
            ledger.append(_record(c, row, course, used=rows[0].prompts, part=part))
    if stopped:
        raise Stopped(rows)
    return rows


@dataclass(frozen=True, kw_only=True)
class Course:
    """What all contestants are asked. Making one raises for a prompt or setting that the model cannot take."""

    model: Decoder
    prompts: list[Prompt]
    max_tokens: int
    kinds: Seq[str] = ()
    repeats: int = 1
    batch: int = 1
    accept: str | None = None
    seed: int = 0
    ignore_eos: bool = False
    law: Law = field(default_factory=Law)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("there are no prompts to measure on")
        if self.repeats < 1 or self.batch < 1:
            raise UsageError(f"repeats and batch must be at least 1, not {self.repeats} and {self.batch}")
        if self.kinds and len(self.kinds) != len(self.prompts):
            raise UsageError(f"{len(self.prompts)} prompts have {len(self.kinds)} kinds")
        for i in range(len(self.prompts)):
            try:
                self.ask(i)
            except LitheError as problem:
                raise type(problem)(f"prompt {i + 1}: {problem}") from None

    def ask(self, i: int, *, most: int | None = None) -> Sequence:
        """Prompt i as a fresh sequence."""
        return request(self.model, self.prompts[i], law=self.law, max_tokens=most or self.max_tokens, seed=self.seed + i,
                       ignore_eos=self.ignore_eos)

    @property
    def groups(self) -> list[range]:
        """Numbers of the prompts that are decoded together."""
        count = len(self.prompts)
        return [range(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]

    @property
    def group_kinds(self) -> list[str]:
        """Of each group the kind that its prompts share, "" where they share none."""
        of = [set(self.kinds[group.start : group.stop]) for group in self.groups]
        return [kinds.pop() if len(kinds) == 1 else "" for kinds in of]

    @property
    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {"max_tokens": self.max_tokens, "repeats": self.repeats, "batch": self.batch, "accept": self.accept,
                "ignore_eos": self.ignore_eos, "law": str(self.law)}


@dataclass
class Contestant:
    """A method in a run: its spec (None for plain decoding), its plan, and what it did so far."""

    text: str | None
    make: Callable[[], DecodePlan]
    plan: DecodePlan
    runs: list[list[Run]] = field(default_factory=list)  # [repeat][group]
    error: str | None = None

    def renew(self) -> None:
        """Begin a repeat with nothing learnt."""
        self.plan = self.make()
        self.runs.append([])

    def decode(self, course: Course, group: range) -> None:
        self.runs[-1].append(measure(self.plan, [course.ask(i) for i in group]))


def _enter(course: Course, methods: Iterable[str]) -> list[Contestant]:
    """Plain decoding and the methods, with their plans made, which refuses what is not legal."""
    makers: list[tuple[str | None, Callable[[], DecodePlan]]] = [(None, partial(plan, course.model))]
    makers += [(text, partial(plan, course.model, draft=text, accept=course.accept)) for text in methods]
    contestants = [Contestant(text, make, make()) for text, make in makers]
    names = [c.plan.name for c in contestants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"methods are given twice, or share a name: {', '.join(twice)}")
    return contestants


def _race(contestants: list[Contestant], course: Course, progress: Progress, together: int) -> None:
    """together: so many run one after the other; where there are more, plain decoding runs again behind each lot."""
    groups, plain = course.groups, contestants[0]
    progress(0, course.repeats * len(groups))
    for repeat in range(course.repeats):
        _each(contestants, Contestant.renew)
        for turn, group in enumerate(groups):
            shift = (turn + repeat) % len(contestants)
            line, again = contestants[shift:] + contestants[:shift], list[Run]()
            for first in range(0, len(line), together):
                _each(line[first : first + together], partial(Contestant.decode, course=course, group=group))
                if together < len(line):
                    again.append(measure(plain.plan, [course.ask(i) for i in group]))
            own = plain.runs[-1][-1]
            own.seconds = fmean([own.seconds, *[run.seconds for run in again]])
            progress(repeat * len(groups) + turn + 1, course.repeats * len(groups))


def _each(contestants: list[Contestant], act: Callable[[Contestant], Any]) -> None:
    """Act on all that still run. A method that fails is out for good: its earlier numbers are not reported either."""
    for c in contestants:
        if c.error is None:
            try:
                act(c)
            except Exception as problem:
                if c.text is None:
                    raise  # without plain decoding there is nothing to compare with
                c.error = f"{type(problem).__name__}: {problem}"


def _even(contestants: list[Contestant]) -> None:
    """After Ctrl-C, cut back to what all have done: whole repeats, or of a first one whole groups."""
    running = [c for c in contestants if c.error is None]
    done = [min(map(len, repeat)) for repeat in zip(*(c.runs for c in running), strict=False)]
    kept = [groups for groups in done if groups and groups == done[0]]
    for c in running:
        c.runs = [c.runs[i][:groups] for i, groups in enumerate(kept)]


def _rows(contestants: list[Contestant], course: Course, calm: quiet.Quiet, stopped: bool) -> list[Row]:
    plain, greedy = contestants[0], course.law.greedy
    promised = "same_tokens" if greedy else "same_law"
    rows = []
    for c in contestants:
        row = Row(method=c.plan.name, lossless=promised in c.plan.promises, error=c.error, interrupted=stopped)
        if c.error is None and plain.runs:
            fill(row, c.runs, plain.runs, greedy=greedy, quiet=calm, seed=course.seed)
            by_kind.fill(row, c.runs, plain.runs, course.group_kinds, seed=course.seed)
            row.held_mb = held_mb((c.plan.draft, c.plan.search, *c.plan.parts), (course.model, c.plan.lanes))
        rows.append(row)
    return rows


def _record(c: Contestant, row: Row, course: Course, *, used: int, part: str | None) -> Record:
    parts = (c.plan.draft, *c.plan.parts, *course.law.warps)
    return record("bench", course.model, measured=row.json(), inputs=course.prompts[:used],
                  settings=course.settings | ({"part": part} if part else {}),
                  seed=course.seed, method=row.method, knobs=c.plan.knobs, parts=parts)
