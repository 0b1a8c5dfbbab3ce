"""The suite: every schema's verdicts, ours beside the raw library's, and what a model writes under it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from lithe import registry
from lithe.bench.json import ROW
from lithe.bench.json._judge import Judge
from lithe.bench.json._sets import Case
from lithe.bench.json._verdicts import Verdict, verdict
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan
from lithe.errors import LitheError
from lithe.model.decoder import Decoder
from lithe.sampling import guidance
from lithe.sampling.constraint import SHELF, ConstraintError, Matcher, Program, compiled
from lithe.sampling.law import Law

PROMPT = "Here is the record as JSON: "


@dataclass
class Written:
    """Texts that a model wrote. No judge sees one that reached the limit, or under which the library gave up."""

    texts: int = 0
    valid: int = 0
    cut: int = 0
    gave_up: int = 0
    unjudged: int = 0
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    ids: list[list[int]] = field(default_factory=list)


@dataclass
class Outcome:
    """All that was found of one schema: our verdict, the raw library's, and texts by how they were written."""

    case: Case
    ours: Verdict
    raw: Verdict
    written: dict[str, Written] = field(default_factory=dict)


class Plainly:
    """The same program without forced tokens: what they save is the difference."""

    def __init__(self, program: Program):
        self.program = program

    def start(self) -> Matcher:
        matcher = self.program.start()
        matcher.forced = list  # type: ignore[method-assign]
        return matcher


def method() -> str:
    """The constraint that is measured: the shelf's, of the row of this paper."""
    return next(entry.name for entry in registry.entries("sampling", SHELF) if entry.card.row == ROW)


def outcomes(made: DecodePlan, cases: Sequence[Case], *, spec: str, max_tokens: int, seed: int, write: int,
             progress: Callable[[int, int], None]) -> list[Outcome]:
    """Every schema in turn. write: of how many schemas a set the model writes texts. Ctrl-C ends the run after a schema."""
    model, found, begun = made.model, [], dict[str, int]()
    assert model.tokenizer is not None
    for done, case in enumerate(cases):
        progress(done, len(cases))
        try:
            ours, program = verdict(case, lambda schema: compiled(model.tokenizer, spec, json.dumps(schema)), model.tokenizer)
            raw, _ = verdict(case, lambda schema: _raw(model, schema), model.tokenizer)
            outcome = Outcome(case, ours, raw)
            if program is not None and begun.get(case.set, 0) < write:
                begun[case.set] = begun.get(case.set, 0) + 1
                outcome.written = _write(made, program, case, max_tokens, seed)
        except KeyboardInterrupt:
            break
        found.append(outcome)
    return found


def _raw(model: Decoder, schema: Any) -> Program:
    """The library as it comes: its own defaults, any white space."""
    if not isinstance(schema, dict):
        raise LitheError("it takes objects only")
    grammar = guidance.library().LLMatcher.grammar_from_json_schema(json.dumps(schema))
    return guidance.Guided("raw", grammar, model.tokenizer)  # type: ignore[arg-type]


def _write(made: DecodePlan, program: Program, case: Case, max_tokens: int, seed: int) -> dict[str, Written]:
    """Greedy and sampled texts: under the constraint with forced tokens and without, and unconstrained."""
    judge, found = Judge(case.schema), {}
    for way, constraint in (("forced", program), ("unforced", Plainly(program)), ("free", None)):
        told = found[way] = Written()
        for law in (Law(), Law.of(temperature=1.0)):
            sequence = request(made.model, PROMPT, law=law, max_tokens=max_tokens, seed=seed, constraint=constraint)
            start, steps = perf_counter(), list[Any]()
            try:
                steps.extend(run(made, [sequence]))
            except ConstraintError:
                told.gave_up += 1
            told.seconds += perf_counter() - start
            told.texts, told.passes, told.tokens = told.texts + 1, told.passes + len(steps), told.tokens + len(sequence.tokens)
            told.ids.append(sequence.tokens)
            if constraint is not None and sequence.finished in ("length", None):  # None: the library gave up
                told.cut += sequence.finished is not None
                continue
            said = judge("".join(step.text for step in steps).strip())
            told.valid, told.unjudged = told.valid + (said is True), told.unjudged + (said is None)
    return found

