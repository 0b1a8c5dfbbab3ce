"""Every task under every policy, one ledger record each. What the ledger holds is not run again."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence as Seq
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lithe.bench.ledger import Ledger, Record
from lithe.bench.parallel import SUITE
from lithe.bench.parallel._tasks import END, LINES, TASKS, Problem, draw, room
from lithe.bench.provenance import digest, record
from lithe.diffuse.loop import run
from lithe.diffuse.plan import DiffusePlan, plan
from lithe.errors import LitheError, UsageError
from lithe.model.checkpoint import fingerprint
from lithe.model.decoder import Decoder
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

Given = dict[str, list[Problem]]  # problems by task
PLAIN = "plain"
SHIPPED = Path(__file__).with_name("policies.toml")
TOGETHER = 64  # problems that are decoded at once
FIRST = 10_000  # seeds from here on were drawn for no training


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task under one policy. places: of the canvas; 0: as many as the task's longest answer and an end take.

    whole: fill it to its last place, whatever text has ended before.
    """

    task: str
    method: str  # "" is one token a step
    problems: int
    seed: int = 0
    temperature: float = 0.0
    places: int = 0
    items: int = 0  # of a list; 0: any
    whole: bool = False
    part: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("method", "seed")}


def policies(path: Path = SHIPPED) -> list[str]:
    """One token a step, the most that can be saved, then the shipped policies."""
    return ["", best(path), *tomllib.loads(path.read_text(encoding="utf-8"))["policies"]]


def best(path: Path = SHIPPED) -> str:
    """The policy that knows the answer: no way to decode, but a bound."""
    return str(tomllib.loads(path.read_text(encoding="utf-8"))["best"])


def problems(cell: Cell, given: Given | None = None) -> list[Problem]:
    """The problems of a cell: the first that are given of its task, else drawn: of a task, count and seed always the same."""
    if given and cell.task in given:
        return given[cell.task][: cell.problems]
    if cell.task not in (*TASKS, *LINES):
        raise UsageError(f"there is no task {cell.task!r}")
    return [draw(cell.task, np.random.default_rng([FIRST + cell.seed, i]), cell.items or None) for i in range(cell.problems)]


@dataclass
class Course:
    """A model and what is known of it so far. given: problems of tasks that are not drawn."""

    model: Decoder
    ledger: Ledger | None = None
    tell: Callable[[str], None] = lambda line: None
    known: dict[Cell, Record] = field(default_factory=dict)
    given: Given = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model.tokenizer is None:
            raise UsageError(f"{self.model.source} has no tokenizer, which problems in words need")
        if self.ledger is None or not self.ledger.path.exists() or self.model.folder is None:
            return
        own = fingerprint(self.model.folder)
        for found in self.ledger.read():
            if found.suite == SUITE and found.model_hash == own and (cell := cell_of(found, self.given)) is not None:
                self.known[cell] = found

    def run(self, cells: Seq[Cell]) -> list[Record]:
        """The records of these cells, measuring what is missing."""
        found = []
        for cell in cells:
            if cell not in self.known:
                self.known[cell] = self.measure(cell)
                if self.ledger is not None:
                    self.ledger.append(self.known[cell])
            found.append(self.known[cell])
        return found

    def measure(self, cell: Cell) -> Record:
        """Decode a cell's problems. A method that this model cannot run is a record too, which says why."""
        asked = problems(cell, self.given)
        made: Any = None
        try:
            made = self.plan(cell)
            measured = self.decoded(made, asked, cell)
        except LitheError as problem:
            measured = {"error": str(problem)}
        self.tell(f"{cell.task}: {cell.method or PLAIN}: " + (measured.get("error") or told(measured)))
        parts = [] if made is None else self.parts(made)
        return record(SUITE, self.model, measured=measured, inputs=[p.prompt for p in asked], settings=cell.settings,
                      seed=cell.seed, method=cell.method or PLAIN, knobs=made.knobs if made else {}, parts=parts)

    def plan(self, cell: Cell) -> Any:
        return plan(self.model, *filter(None, [cell.method]))

    def decoded(self, made: Any, asked: Seq[Problem], cell: Cell) -> dict[str, Any]:
        return decoded(self.model, made, asked, cell)

    def parts(self, made: Any) -> list[Any]:
        """The methods that do the work."""
        return [*vars(made.kit()).values(), made.reader.route]


def decoded(model: Decoder, made: DiffusePlan, asked: Seq[Problem], cell: Cell) -> dict[str, Any]:
    """What came out, problem by problem: judged by rule up to the first end of text; passes, rows and keys as counted.

    texts: four digits of each answer's hash. bits: of all that was committed, by the chances it was committed with. doubt: a
    place's entropy in first passes, in nats.
    """
    law = Law.of(temperature=cell.temperature) if cell.temperature else None
    found: dict[str, Any] = {"right": "", "texts": "", "passes": [], "tokens": [], "bits": 0.0}
    found |= dict.fromkeys(("places", "rows", "keys", "experts"), 0)
    begun, places, doubts = perf_counter(), cell.places or room(asked[0].task), list[float]()
    made.watch = lambda canvas, guess: None if canvas.round else doubts.append(float(guess.entropy_P.mean()))
    for at in range(0, len(asked), TOGETHER):
        batch = [ask(model, p.prompt, places, law, cell.seed + at + i, whole=cell.whole)
                 for i, p in enumerate(asked[at : at + TOGETHER])]
        for _ in run(made, batch):
            pass
        for problem, sequence, each in zip(asked[at:], batch, made.runs, strict=False):
            said = words(model, sequence)
            found["right"] += str(int(problem.right(said)))
            found["texts"] += digest(said)[:4]
            found["passes"].append(each.spent.passes)
            found["tokens"].append(len(said))
            found["places"] += sum(each.spent.rounds)
            found["bits"] -= float(each.canvas.sure_T.log2().sum())
            for name in ("rows", "keys", "experts"):
                found[name] += getattr(each.spent, name)
    taken = perf_counter() - begun
    return found | {"seconds": round(taken, 4), "bits": round(found["bits"], 3), "doubt": round(sum(doubts) / len(doubts), 4)}


def ask(model: Decoder, prompt: Seq[str], places: int, law: Law | None, seed: int, *, whole: bool = False) -> Sequence:
    """A problem as a request. whole: no token ends it."""
    assert model.tokenizer is not None
    return Sequence(model.tokenizer.encode(" ".join(prompt), bos=False), limit=places, context=model.config.context, law=law,
                    seed=seed, eos=frozenset() if whole else model.tokenizer.eos_ids)


def words(model: Decoder, sequence: Sequence) -> list[str]:
    """The answer, up to its end."""
    assert model.tokenizer is not None
    ends = [i for i, token in enumerate(sequence.tokens) if token in model.tokenizer.eos_ids]
    said = [model.tokenizer.decode([token]).strip(" ") for token in sequence.tokens[: ends[0] if ends else None]]
    return said if END not in said else said[: said.index(END)]


def cell_of(found: Record, given: Given | None = None) -> Cell | None:
    """The cell of a record, None where its problems were other ones."""
    method = "" if found.method == PLAIN else found.method
    try:
        cell = Cell(**found.settings, method=method, seed=found.seed or 0)
        same = found.prompts_hash == digest([p.prompt for p in problems(cell, given)])
    except (TypeError, ValueError, KeyError, UsageError):
        return None
    return cell if same else None


def cells(tasks: Seq[str], methods: Seq[str], count: int, seed: int = 0, *, given: Given | None = None,
          **settings: Any) -> Iterator[Cell]:
    """Task by task, every policy. Raises UsageError for an unknown task."""
    most = dict.fromkeys((*TASKS, *LINES), count) | {task: len(each) for task, each in (given or {}).items()}
    for task in tasks:
        if task not in most:
            raise UsageError(f"there is no task {task!r}; known: {', '.join(most)}")
    for task in tasks:
        for method in methods:
            yield Cell(task=task, method=method, problems=min(count, most[task]), seed=seed, **settings)


def told(measured: dict[str, Any]) -> str:
    count = len(measured["right"])
    return f"{measured['right'].count('1') / count:.0%} right, {sum(measured['passes']) / count:.1f} passes"
