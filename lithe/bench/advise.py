"""Which way to decode pays on this model, machine and kind of prompt: predicted from its parts, then confirmed by running.

A round of a method costs its drafting, one pass over the rows it verifies, and the walk. The pass comes from the stored cost
curve T(n), what a method drafts and what is accepted from a short trial. So a dozen methods and sizes are compared in the
time of a few texts, and only those that promise most are run against plain decoding.

A machine's speed changes from minute to minute. So where all ways are to be confirmed, prompts of the trial and held-out ones
alternate; a prediction still knows the trial's rounds and T(n) alone: other plans run the held-out prompts, and what those took
is put beside a prediction, never into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from lithe import registry
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.bench.runner import OFTEN, Course, bench
from lithe.decode.loop import Step, run
from lithe.decode.plan import plan
from lithe.errors import LitheError
from lithe.model.curve import CostCurve
from lithe.model.decoder import Decoder
from lithe.model.runtime import cost_curve

SIZES = {"nodes": (4, 8, 16, 32), "tokens": (2, 4, 8)}  # knobs that say how many rows a pass verifies, and what is tried
CLOSE = 0.15  # share of a measured speedup that a prediction may be off
WARM_UP = 8  # tokens of a method before its trial counts
COSTLY = 0.35  # share of a round from which its drafting is what stands in the way

Progress = Callable[[int, int], None]


@dataclass(kw_only=True)
class Advice:
    """What is known of one way to decode. Seconds are of an average round; None where the trial did not come so far."""

    method: str
    spec: str  # text that a plan is made from
    lossless: bool
    problem: str | None = None  # why it cannot run here
    tokens_per_pass: float = 0.0
    rows_per_pass: float = 0.0
    draft_s: float = 0.0  # drafting and observing
    verify_s: float = 0.0  # the pass, by the cost curve
    walk_s: float = 0.0
    passes: int = 0
    speedup: float = 0.0  # predicted tokens per second over plain decoding's
    tokens_per_s: float = 0.0  # predicted
    measured: float | None = None  # speedup, where it was confirmed
    interval: tuple[float, float] | None = None
    measured_tokens_per_pass: float | None = None  # so that other texts can be told from another speed
    reason: str = ""

    @property
    def seconds(self) -> float:
        """Of an average round."""
        return self.draft_s + self.verify_s + self.walk_s

    @property
    def worth(self) -> float:
        """The speedup to go by: measured where it was, predicted where not."""
        return self.speedup if self.measured is None else self.measured


@dataclass(kw_only=True)
class Advised:
    """All ways, the best first and those that cannot run last; `best` is None where plain decoding wins."""

    curve: CostCurve
    plain: Advice
    ways: list[Advice]
    best: Advice | None
    disturbed: bool = False  # something else ran beside the confirmation

    @property
    def errors(self) -> dict[str, float]:
        """How far each prediction that was put to the test lay above the measurement, as a share of it."""
        return {way.spec: way.speedup / way.measured - 1 for way in self.ways if way.measured and way.problem is None}

    @property
    def close(self) -> int:
        """How many of them were off by no more than CLOSE."""
        return sum(abs(error) <= CLOSE for error in self.errors.values())

    def json(self) -> dict[str, Any]:
        return {"errors": self.errors, "close": self.close,
                "best": self.best.method if self.best else None, "disturbed": self.disturbed,
                "curve": dict(zip(self.curve.rows, self.curve.medians, strict=True)),
                "ways": [dataclasses.asdict(way) for way in [self.plain, *self.ways]]}


def advise(model: Decoder, prompts: Iterable[str | Seq[int]], methods: Iterable[str] = (), *, second: str | None = None,
           max_tokens: int = 64, trials: int = 4, confirm: int = 2, lossy: bool = False, seed: int = 0,
           ledger: Ledger | None = None, progress: Progress | None = None, **settings: Any) -> Advised:
    """Rank ways to decode, best first, with reasons.

    methods: specs to consider; by default every draft on the shelf that can run here, in several sizes. second: a model
    for drafts that need one. trials: prompts of the trial; the others, where there are any, serve to confirm the best
    `confirm` by running them, between those of the trial where that is all of them. lossy: consider ways that may change
    the output too. ledger: where what came out is kept. settings: as for `generate`.
    """
    every = list(prompts)
    trial = Course(model=model, prompts=every[:trials], max_tokens=max_tokens, seed=seed, law=_law(settings))
    curve = cost_curve(model)
    asked = list(methods) or candidates(second)
    tell = progress or (lambda done, total: None)
    total = len(trial.prompts) + 2
    tell(0, total)
    tried = [_Trial.of(trial, text) for text in (None, *asked)]
    turns = _turns(tried, trial, curve, lambda done: tell(done, total))
    put_to_test = partial(_confirm, model, every[trials:] or every, max_tokens=max_tokens, seed=seed, settings=settings)
    able = [one.way for one in tried[1:] if one.way.problem is None and (lossy or one.way.lossless)]
    together, disturbed = len(able) <= confirm, False
    if together:
        disturbed = put_to_test(able, between=lambda: next(turns, None))
    list(turns)  # those that are left
    plain, *ways = (one.told() for one in tried)
    _compare(plain, ways)
    ways = _one_size_each([way for way in ways if lossy or way.lossless], keep=bool(methods))
    if not together:
        disturbed = put_to_test([way for way in ways if way.problem is None][:confirm])
    ways.sort(key=lambda way: (way.problem is not None, -way.worth))
    tell(total, total)
    for way in ways:
        way.reason = reason(way, plain.seconds)
    best = next((way for way in ways[:1] if way.problem is None and _pays(way)), None)
    found = Advised(curve=curve, plain=plain, ways=ways, best=best, disturbed=disturbed)
    if ledger is not None:
        parts = [part for one in tried if one.plan for part in (one.plan.draft, *one.plan.parts)]
        settings = trial.settings | {"trials": len(trial.prompts), "confirm": confirm}
        ledger.append(record("advise", model, measured=found.json(), inputs=every, settings=settings, seed=seed,
                             method=best.spec if best else "plain", parts=parts))
    return found


def candidates(second: str | None = None) -> list[str]:
    """Specs of every draft on the shelf, and of every policy that shapes the trees of one, in the sizes that knobs offer.

    Those with weights of their own are left out: they must be fitted before they can be asked.
    """
    drafts = [entry for entry in registry.entries("decode", "draft") if entry.card.emits and not entry.card.trains]
    found = [spec for entry in drafts for spec in _sizes(entry, second)]
    shaped = [_spec(entry, second) for entry in drafts if entry.card.laws and entry.card.row is None]
    for entry in registry.entries("decode", "tree"):
        if not entry.card.trains:
            found += [f"{spec} + {draft}" for draft in shaped for spec in _sizes(entry)]
    return found


def _sizes(entry: registry.Entry, second: str | None = None) -> list[str]:
    """One spec a size, or one where no knob says how large its trees are."""
    known = {knob.name: knob for knob in dataclasses.fields(entry.module.Knobs)}
    size = next((name for name in SIZES if name in known), None)
    return [_spec(entry, second, f"{size}={n}") for n in SIZES[size]] if size else [_spec(entry, second)]


def _spec(entry: registry.Entry, second: str | None, *knobs: str) -> str:
    model = [f"model={second}"] if second and "second_model" in entry.card.needs else []
    return ":".join(filter(None, [entry.reference, ",".join([*model, *knobs])]))


def reason(way: Advice, plain_s: float) -> str:
    """One line that says what decides. plain_s: seconds of a round of plain decoding, from the same minutes."""
    if way.problem is not None:
        return way.problem
    gains = f"{way.tokens_per_pass:.2f} tokens a pass"
    if way.worth > 1:
        return f"{gains}, and a round costs {way.seconds / plain_s:.2f} plain ones"
    if way.draft_s > COSTLY * way.seconds:
        return f"drafting costs {way.draft_s / way.seconds:.0%} of a round, for {gains}"
    if way.tokens_per_pass < 1.05:
        return f"hardly anything it drafts is accepted: {gains}"
    return f"{gains}, but verifying {way.rows_per_pass:.0f} rows costs {way.verify_s / plain_s:.2f} plain rounds"


@dataclass
class _Trial:
    """A way on trial: its plan, and sums over its rounds."""

    way: Advice
    plan: Any = None
    tokens: int = 0
    passes: int = 0
    rows: int = 0
    pass_s: float = 0.0  # by the cost curve
    draft_s: float = 0.0
    beyond: list[float] = field(default_factory=list)  # of each prompt: what its passes took, in what the curve says of them
    walk: list[float] = field(default_factory=list)  # of each prompt: seconds a round

    @classmethod
    def of(cls, course: Course, text: str | None) -> _Trial:
        try:
            made = plan(course.model, draft=text)
        except LitheError as problem:
            return cls(Advice(method=text or "plain", spec=text or "", lossless=True, problem=str(problem)))
        promise = "same_tokens" if course.law.greedy else "same_law"
        return cls(Advice(method=made.name, spec=text or "", lossless=promise in made.promises), made)

    def decode(self, course: Course, i: int, curve: CostCurve) -> None:
        """One prompt; the first one warms up before it counts."""
        if self.way.problem is not None:
            return
        try:
            if not self.passes:
                list(run(self.plan, [course.ask(i, most=WARM_UP)]))
            self._count(list(run(self.plan, [course.ask(i)])), curve)
        except LitheError as problem:
            self.way.problem = str(problem)

    def _count(self, steps: list[Step], curve: CostCurve) -> None:
        spent = lambda part: sum(step.seconds[part] for step in steps)
        told = sum(curve.seconds(step.nodes) for step in steps)
        self.tokens, self.rows = self.tokens + sum(len(s.tokens) for s in steps), self.rows + sum(s.nodes for s in steps)
        self.passes, self.pass_s = self.passes + len(steps), self.pass_s + told
        self.draft_s += spent("draft") + spent("observe")
        self.beyond.append(spent("verify") / told)  # by prompts: several rounds by one call share their seconds evenly
        self.walk.append(spent("walk") / len(steps))

    def told(self) -> Advice:
        """The pass costs what the curve says, times what this way's passes take of it: a cold cache costs too. Means, since a
        passing slow moment counts in what is measured too, and plain passes vary the most."""
        if self.way.problem is None:
            self.way.passes = self.passes
            self.way.tokens_per_pass, self.way.rows_per_pass = self.tokens / self.passes, self.rows / self.passes
            self.way.draft_s, self.way.walk_s = self.draft_s / self.passes, fmean(self.walk)
            self.way.verify_s = self.pass_s / self.passes * fmean(self.beyond)
        return self.way


def _turns(tried: list[_Trial], course: Course, curve: CostCurve, tell: Callable[[int], None]) -> Iterator[None]:
    """The trial, prompt by prompt: all ways side by side and in turns, so that what disturbs one disturbs all."""
    for i in range(len(course.prompts)):
        for at, one in enumerate(tried[i % len(tried) :] + tried[: i % len(tried)], 1):
            one.decode(course, i, curve)
            if at % OFTEN == 0:  # by plain decoding all is divided
                tried[0].decode(course, i, curve)
        tell(i + 1)
        yield


def _compare(plain: Advice, ways: list[Advice]) -> None:
    plain.tokens_per_s, plain.speedup = plain.tokens_per_pass / plain.seconds, 1.0
    for way in ways:
        if way.problem is None:
            way.tokens_per_s = way.tokens_per_pass / way.seconds
            way.speedup = way.tokens_per_s / plain.tokens_per_s


def _one_size_each(ways: list[Advice], *, keep: bool) -> list[Advice]:
    """The best size of every method, best first; all of them where the user named them."""
    ways = sorted(ways, key=lambda way: (way.problem is not None, -way.speedup))
    seen: set[str] = set()
    chosen = []
    for way in ways:
        name = way.method.partition(":")[0]
        if keep or name not in seen:
            chosen.append(way)
            seen.add(name)
    return chosen


def _confirm(model: Decoder, prompts: list[str | Seq[int]], ways: list[Advice], *, max_tokens: int, seed: int,
             settings: dict[str, Any], between: Callable[[], None] = lambda: None) -> bool:
    """Run these beside plain decoding; returns whether the machine was disturbed. between: called before each prompt."""
    if not ways:
        return False
    rows = bench(model, [way.spec for way in ways], prompts, max_tokens=max_tokens, seed=seed, often=True,
                 progress=lambda done, of: between(), **settings)
    for way, row in zip(ways, rows[1:], strict=True):
        way.measured, way.interval, way.problem = row.speedup, row.speedup_interval, way.problem or row.error
        way.measured_tokens_per_pass = row.tokens_per_pass
        if way.lossless and row.same is not None and row.same < row.of:
            way.problem = f"it changed {row.of - row.same} of {row.of} texts, against its promise: run lithe doctor"
    return rows[0].disturbed


def _pays(way: Advice) -> bool:
    """Whether it is surely faster than plain decoding: the lower end of its interval decides, where it was run."""
    return (way.interval[0] if way.interval else way.worth) > 1


def _law(settings: dict[str, Any]) -> Any:
    from lithe.sampling.law import Law

    return Law.of(**settings)
