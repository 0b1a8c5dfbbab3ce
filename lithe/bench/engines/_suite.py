"""The engines take turns: every task by each of them before the next task, round after round, on the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence as Seq
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, sleep
from typing import Any

from lithe.bench import quiet
from lithe.bench.engines import BEHIND, GGUF_TYPES, LITHE, LLAMA, LONG, MACHINE, PROMPT, ROWS, TRANSFORMERS
from lithe.bench.engines._target import Target
from lithe.bench.engines._turns import PAUSE_S, EngineError, Worker, cost_of_import, missing
from lithe.errors import LitheError

STARTS = 3  # processes started to time a start; of random weights, which nobody loads, one
CHECKED = 64  # rows whose logits are compared
COLUMNS = 16  # logits of each that are
LEAST = 3  # quiet rounds without which a run counts as disturbed
EXTRA = 2  # times the rounds asked for: how many may be tried until enough were quiet
FLOATS = ("fp32", "bf16")  # what transformers can run

Progress = Callable[[int, int], None]


@dataclass(kw_only=True)
class Cell:
    """An engine in a precision. samples: by task one number a round, in seconds, or as `Machine` says; loss: nats a text."""

    engine: str
    precision: str
    facts: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    error: str | None = None

    def add(self, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self.samples.setdefault(name, []).append(number)

    def json(self) -> dict[str, Any]:
        """Plain values by name, numbers to six digits."""
        short = {name: [float(f"{number:.6g}") for number in numbers] for name, numbers in self.samples.items()}
        return dataclasses.asdict(self) | {"samples": short}


@dataclass(kw_only=True)
class Run:
    """All cells of a run. left_out: rounds during which something else ran; disturbed: whether too few others were left."""

    cells: list[Cell]
    rounds: int = 0
    left_out: int = 0
    disturbed: bool = False
    calm: quiet.Quiet
    interrupted: bool = False


def race(target: Target, *, engines: Seq[str], precisions: Seq[str], rounds: int, tokens: int, threads: int,
         progress: Progress) -> Run:
    """Measure engines in precisions. What is not installed, or fails, says so in its cell, and the rest runs."""
    cells = [Cell(engine=engine, precision=precision, error=missing(engine))
             for precision in precisions for engine in engines if engine != TRANSFORMERS or precision in FLOATS]
    cells += [Cell(engine=MACHINE, precision=precision) for precision in precisions]
    run = Run(cells=cells, calm=quiet.listen())
    course = _Course(run, target, threads, tokens)
    starts = STARTS if target.texts else 1
    total, done = starts + rounds + (rounds if target.long else 0), 0
    try:
        for number in range(starts):
            course.start([cell for cell in course.alive() if not number or cell.engine != TRANSFORMERS])  # far off: once tells
            progress(done := done + 1, total)
        with course.workers(course.alive(), capacity=max(PROMPT, BEHIND + max(ROWS) + tokens)) as workers:
            course.prove(workers)
            done = course.rounds(workers, rounds, course.round, progress, done, total)
            course.score(workers)
        if target.long:
            rivals = [cell for cell in course.alive() if cell.engine in (LITHE, LLAMA)]
            with course.workers(rivals, capacity=LONG + max(ROWS)) as workers:
                each(workers, lambda cell, worker: worker.ask("hold", ids=target.ids[:LONG]))
                course.rounds(workers, rounds, course.long, progress, done, total)
    except KeyboardInterrupt:
        run.interrupted = True
    return run


Workers = list[tuple[Cell, Worker]]


def each(workers: Workers, act: Callable[[Cell, Worker], Any]) -> None:
    """Act on all that still run; one that fails is out."""
    for cell, worker in workers:
        if cell.error is None:
            try:
                act(cell, worker)
            except EngineError as problem:
                cell.error = str(problem)


@dataclass
class _Course:
    run: Run
    target: Target
    threads: int
    tokens: int

    def settings(self, cell: Cell, capacity: int) -> dict[str, Any]:
        file = {"file": self.target.gguf(cell.precision)} if cell.engine == LLAMA else {}
        flash = {"flash": cell.facts["flash"]} if "flash" in cell.facts else {}  # found once, kept
        return {"folder": str(self.target.folder), "precision": cell.precision, "threads": self.threads,
                "capacity": capacity, **file, **flash}

    def alive(self) -> list[Cell]:
        return [cell for cell in self.run.cells if cell.error is None]

    @contextmanager
    def workers(self, cells: list[Cell], *, capacity: int) -> Iterator[Workers]:
        """A process for every cell, its model loaded."""
        with ExitStack() as stack:
            workers = []
            for cell in cells:
                try:
                    worker = stack.enter_context(Worker(cell.engine, **self.settings(cell, capacity)))
                    cell.facts = worker.open() | cell.facts
                    workers.append((cell, worker))
                except LitheError as problem:
                    cell.error = str(problem)
            yield workers

    def start(self, cells: list[Cell]) -> None:
        """Time every engine from the start of its process to a first token, and the import of torch alone."""
        seconds, megabytes = cost_of_import("torch")
        for cell in cells:
            if cell.engine == MACHINE:
                cell.add({"import_torch": seconds})
                cell.facts["import_torch_mb"] = round(megabytes, 1)
                continue
            try:
                settings = self.settings(cell, BEHIND) | ({"flash": False} if cell.engine == LLAMA else {})
                with Worker(cell.engine, **settings) as worker:
                    worker.open()
                    worker.ask("first", ids=self.target.ids[:8])
                    cell.add({"start": perf_counter() - worker.begun})
            except LitheError as problem:
                cell.error = str(problem)

    def prove(self, workers: Workers) -> None:
        """Have every engine's logits compared with lithe's of most precision, and all of them warmed."""
        engines = [(cell, worker) for cell, worker in workers if cell.engine != MACHINE]
        said: dict[tuple[str, str], Any] = {}
        each(engines, lambda cell, worker: said.update(
            {(cell.engine, cell.precision): worker.ask("check", ids=self.target.ids[:CHECKED], columns=COLUMNS)}))
        best = next((key for p in ("fp32", "bf16", "int8", "int4") if (key := (LITHE, p)) in said), None)
        for cell, _ in engines:
            if best and (cell.engine, cell.precision) in said:
                cell.facts["beside"] = " ".join(best)
                cell.facts |= _compared(said[cell.engine, cell.precision], said[best])
        self.round(workers)

    def rounds(self, workers: Workers, wanted: int, act: Callable[[Workers], dict[int, dict[str, float]]],
               progress: Progress, done: int, total: int) -> int:
        """Rounds until enough were quiet. What is measured while something else runs is left out, and counted."""
        kept: list[dict] = []
        tried: list[dict] = []
        before = _listen()
        try:
            while len(kept) < wanted and len(tried) < EXTRA * wanted:
                shift = len(tried) % len(workers) if workers else 0
                found = act(workers[shift:] + workers[:shift])
                after = _listen()
                tried.append(found)
                if not quiet.worse(before, after).disturbed:
                    kept.append(found)
                    progress(done := done + 1, total)
                before = after
        finally:  # Ctrl-C keeps what was done
            self.keep(workers, kept, tried, min(LEAST, wanted))
            self.run.calm = quiet.worse(self.run.calm, before)
        return done

    def keep(self, workers: Workers, kept: list[dict], tried: list[dict], least: int) -> None:
        """Put the quiet rounds into the cells, or where these are too few, all of them under a mark."""
        enough = len(kept) >= least
        self.run.left_out += len(tried) - len(kept)
        self.run.disturbed |= not enough and bool(tried)
        for cell, worker in workers:
            for found in kept if enough else tried:
                cell.add(found.get(id(cell), {}))
            cell.facts.setdefault("peak_mb", round(worker.peak_mb, 1))
            cell.facts.setdefault("busy_waiting", round(median(worker.busy), 4) if worker.busy else 0.0)

    def round(self, workers: Workers) -> dict[int, dict[str, float]]:
        """One turn of every engine at each task. Numbers by cell."""
        ids = self.target.ids
        found: dict[int, dict[str, float]] = {id(cell): {} for cell, _ in workers}
        engines = [(cell, worker) for cell, worker in workers if cell.engine != MACHINE]
        each([(c, w) for c, w in workers if c.engine == MACHINE], lambda c, w: found[id(c)].update(self.limits(c, w)))
        each(engines, lambda c, w: found[id(c)].update(decode=self.decode(c, w)))
        each(engines, lambda c, w: found[id(c)].update(prefill=w.turn("prefill", ids=ids[:PROMPT])))
        each(engines, lambda c, w: found[id(c)].update(zip(map(str, ROWS), w.turn(
            "curve", ids=ids[: max(ROWS)], behind=BEHIND, rows=ROWS), strict=True)))  # the prompt's beginning is still held
        return found

    def decode(self, cell: Cell, worker: Worker) -> float:
        """Seconds a token."""
        tokens, seconds = worker.turn("decode", ids=self.target.ids[:BEHIND], count=self.tokens)
        cell.facts["tokens"] = tokens
        return seconds / len(tokens)

    def limits(self, cell: Cell, worker: Worker) -> dict[str, float]:
        """Bytes and operations a second, for weights as large as lithe's are in this precision."""
        size = next((c.facts["pass_mb"] for c in self.run.cells if c.engine == LITHE and c.precision == cell.precision
                     and c.facts.get("pass_mb")), None)
        found = {"peak": worker.turn("peak", kind=cell.precision), "peak_fp32": worker.turn("peak", kind="fp32")}
        return found if size is None else found | {"bandwidth": worker.turn("bandwidth", size=int(size * 1e6))}

    def long(self, workers: Workers) -> dict[int, dict[str, float]]:
        """T(1) behind a long context."""
        found: dict[int, dict[str, float]] = {}
        each(workers, lambda c, w: found.update(
            {id(c): {"long": w.turn("long", ids=self.target.ids[:LONG])}}))
        return found

    def score(self, workers: Workers) -> None:
        """Nats of every held-out text."""
        def scored(cell: Cell, worker: Worker) -> None:
            nats = worker.ask("loss", windows=self.target.texts, rows=max(ROWS))
            cell.samples["loss"] = [sum(each) for each in nats]
            cell.facts["loss_tokens"] = sum(map(len, nats))
        if self.target.texts:
            each([(c, w) for c, w in workers if c.engine != MACHINE], scored)


def _listen() -> quiet.Quiet:
    sleep(PAUSE_S)  # the threads of the last turn do not count as somebody else's
    return quiet.listen()


def _compared(said: dict[str, Any], best: dict[str, Any]) -> dict[str, float]:
    """Share of rows with the same likeliest token, and the largest difference of logits over the largest logit."""
    same = sum(a == b for a, b in zip(said["best"], best["best"], strict=True)) / len(best["best"])
    rows = zip(said["first"], best["first"], strict=True)
    off = max(abs(a - b) for mine, its in rows for a, b in zip(mine, its, strict=True))
    return {"argmax_same": same, "logit_error": float(f"{off / max(map(abs, best['top'])):.3g}")}


def named(cell: Cell) -> str:
    """What an engine calls its precision."""
    return GGUF_TYPES[cell.precision] if cell.engine == LLAMA else cell.precision
