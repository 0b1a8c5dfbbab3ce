"""A matrix of runs, one ledger record each. What the ledger holds is not run again, so an interrupted matrix goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lithe.bench import provenance
from lithe.bench.ledger import Ledger, Record
from lithe.bench.tuning import FULL, SUITE
from lithe.bench.tuning._plan import Entry, Plan, Shift, data_folder, sized
from lithe.bench.tuning._run import Cell, open_base, run, score
from lithe.bench.tuning._text import Texts, home, texts
from lithe.errors import LitheError, UsageError
from lithe.model.checkpoint import fingerprint
from lithe.model.load import resolve

Tell = Callable[[str], None]


@dataclass
class Matrix:
    """A plan on a model, and what is known of it so far: records by cell."""

    model: str
    plan: Plan
    ledger: Ledger
    root: Path = field(default_factory=data_folder)
    offline: bool = False
    tell: Tell = lambda line: None
    known: dict[Cell, Record] = field(default_factory=dict)
    _texts: dict[str, Texts] = field(default_factory=dict)
    _frozen: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = open_base(self.model, "float32", offline=self.offline)
        if plain.tokenizer is None:
            raise UsageError(f"{self.model} has no tokenizer, which reading text needs")
        self._plain, self._home = plain, home(self.plan, self.root, plain.tokenizer)
        self._hash = fingerprint(resolve(self.model, offline=self.offline))
        for record in self.ledger.read():
            if (cell := self.cell_of(record)) is not None:
                self.known[cell] = record

    def run(self, most: int | None = None) -> int:
        """Run what is missing, at most so many cells; how many were run."""
        done = 0
        for cell in self.missing():
            if most is not None and done >= most:
                break
            self.measure(cell)
            done += 1
        return done

    def missing(self) -> Iterator[Cell]:
        """What to run next, given all that is known by then.

        All weights on every shift; each method on every shift at the plan's share, where it says that the search for its rate
        begins; then that search; the other shares on the first shift; the best rates on the others; the headline's seeds; the
        other shares elsewhere. The best rate is searched on the first shift at the plan's share, for all weights on every one:
        up and down the grid until the loss rises. Elsewhere it is the one found there.
        """
        first, plan = self.plan.shifts[0], self.plan
        full, others = plan.methods[0], plan.methods[1:]
        for shift in plan.shifts:
            yield from self.search(full, shift, plan.share)
        for method in others:
            for shift in plan.shifts:
                cell = self.cell(method, shift, plan.share, self.nearest(method.rate))
                if cell is not None and cell not in self.known:
                    yield cell
        for method in others if plan.searched else ():
            yield from self.search(method, first, plan.share)
        yield from self.curve(first)
        for method in others:
            for shift in plan.shifts[1:]:
                yield from self.again(method, shift, plan.share)
        for seed in plan.seeds[1:]:
            for method in plan.methods:
                for shift in plan.shifts if method.name in plan.lead else ():
                    yield from self.again(method, shift, plan.share, seed)
        for shift in plan.shifts[1:]:
            yield from self.curve(shift)

    def curve(self, shift: Shift) -> Iterator[Cell]:
        for method in self.plan.methods[1:]:
            for share in self.plan.curve if method.scales else ():
                yield from self.again(method, shift, share)

    def search(self, method: Entry, shift: Shift, share: float) -> Iterator[Cell]:
        """Runs until the best rate of the grid has worse ones, or the grid's ends, on both sides."""
        tried: dict[float, float] = {}
        rates = self.plan.rates
        start = rate = self.nearest(method.rate)
        while True:
            cell = self.cell(method, shift, share, rate)
            if cell is None:
                return
            if cell not in self.known:
                yield cell
            tried[rate] = chosen_by(self.known[cell])
            best = rates.index(min(tried, key=lambda r: (tried[r], abs(math.log(r / start)))))
            beside = [rates[i] for i in (best + 1, best - 1) if 0 <= i < len(rates) and rates[i] not in tried]
            if not beside:
                return
            rate = beside[0]

    def nearest(self, rate: float) -> float:
        return min(self.plan.rates, key=lambda r: abs(math.log(r / rate)))

    def again(self, method: Entry, shift: Shift, share: float, seed: int = 0) -> Iterator[Cell]:
        """One run at the best rate of this method: on this shift where it was searched, else on the first one."""
        tried = [record for cell, record in self.known.items() if cell.method == method.name and cell.seed == 0
                 and cell.share in (None, self.plan.share)]
        own = [r for r in tried if r.settings["shift"] == (shift.name if method.name == FULL else self.plan.shifts[0].name)]
        if not own:
            return
        rate = min(own, key=chosen_by).settings["rate"]
        cell = self.cell(method, shift, share, rate, seed)
        if cell is not None and cell not in self.known:
            yield cell

    def cell(self, method: Entry, shift: Shift, share: float, rate: float, seed: int = 0) -> Cell | None:
        """None where the method cannot be as small as the share."""
        spec = sized(method, share, self._plain)
        if spec is None:
            return None
        return Cell(method=method.name, spec=spec, base=method.base, shift=shift.name, share=share if method.scales else None,
                    rate=rate, seed=seed)

    def measure(self, cell: Cell) -> Record:
        """Run a cell and keep its record. A method that cannot run here is a record too, which says why."""
        found = self.texts(cell.shift)
        model = open_base(self.model, cell.base, offline=self.offline)
        before = self.frozen(cell, found)
        parts: tuple[Any, ...] = ()
        try:
            measured = run(cell, model, self.plan, found, self._home)
            parts = () if model.adapters is None else (model.adapters.owner.adapters["a"].method,)
        except Exception as problem:  # a fault of one method is its own result, and the matrix goes on
            measured = {"error": str(problem) if isinstance(problem, LitheError) else repr(problem)}
        record = provenance.record(
            SUITE, model, measured={"weights": model.size, **before, **measured}, inputs=[found.digest, self._home.digest],
            settings={**self.plan.sizes, **dataclasses.asdict(cell)}, seed=cell.seed, method=cell.method, parts=parts)
        self.ledger.append(record)
        self.known[cell] = record
        self.tell(told(cell, record))
        return record

    def frozen(self, cell: Cell, found: Texts) -> dict[str, float]:
        """The losses before any training, in float32 and in the base's own precision."""
        for base in ("float32", cell.base):
            if (base, cell.shift) not in self._frozen:
                model = self._plain if base == "float32" else open_base(self.model, base, offline=self.offline)
                self._frozen[base, cell.shift] = {"before": score(model, found.test), "home_before": score(model, self._home)}
        own = self._frozen[cell.base, cell.shift]
        return self._frozen["float32", cell.shift] | {f"base_{name}": value for name, value in own.items()}

    def texts(self, shift: str) -> Texts:
        if shift not in self._texts:
            assert self._plain.tokenizer is not None
            said = next(s for s in self.plan.shifts if s.name == shift)
            self._texts[shift] = texts(said, self.plan, self.root, self._plain.tokenizer)
        return self._texts[shift]

    def cell_of(self, record: Record) -> Cell | None:
        """The cell of a record, None where it is of another suite, model, plan or text."""
        names = [f.name for f in dataclasses.fields(Cell)]
        if record.suite != SUITE or record.model_hash != self._hash or not set(names) <= record.settings.keys():
            return None
        if any(record.settings.get(name) != value for name, value in self.plan.sizes.items()):
            return None
        if record.settings["shift"] not in {s.name for s in self.plan.shifts}:
            return None
        same = provenance.digest([self.texts(record.settings["shift"]).digest, self._home.digest])
        return Cell(**{name: record.settings[name] for name in names}) if record.prompts_hash == same else None


def chosen_by(record: Record) -> float:
    """The loss by which the best rate is found; infinite where the run failed."""
    return record.measured.get("chosen_by", math.inf)


def told(cell: Cell, record: Record) -> str:
    """A line for whoever watches."""
    found = record.measured
    what = f"{cell.shift}: {cell.spec or FULL}{'' if cell.base == 'float32' else ' on ' + cell.base} at {cell.rate:g}"
    if "after" not in found:
        return f"{what}: {found.get('diverged') or found.get('error')}"
    return (f"{what}: {found['before']:.3f} -> {found['after']:.3f}, home {found['home_before']:.3f} -> "
            f"{found['home_after']:.3f}, {found['values']:,} values, {found['seconds']:.0f} s")


def ran(records: Iterable[Record]) -> list[Record]:
    """Those of this suite that have a result."""
    return [record for record in records if record.suite == SUITE and "after" in record.measured]
