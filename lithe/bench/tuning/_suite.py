"""Which trainings of a plan to run next, in an order that makes an interrupted matrix useful."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lithe.bench import matrix
from lithe.bench.ledger import Record
from lithe.bench.tuning import FULL, SUITE
from lithe.bench.tuning._plan import Entry, Plan, Shift, sized
from lithe.bench.tuning._run import Cell, open_base, run, score
from lithe.bench.tuning._text import Texts, home, texts
from lithe.errors import UsageError
from lithe.model.decoder import Decoder


@dataclass
class Matrix(matrix.Matrix[Plan, Cell]):
    """Trainings of a plan's methods, their rates searched."""

    _texts: dict[str, Texts] = field(default_factory=dict)
    _frozen: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    suite: ClassVar[str] = SUITE
    cell_kind: ClassVar[type] = Cell

    def open(self) -> None:
        plain = open_base(self.model, "float32", offline=self.offline)
        if plain.tokenizer is None:
            raise UsageError(f"{self.model} has no tokenizer, which reading text needs")
        self._plain, self._home = plain, home(self.plan, self.root, plain.tokenizer)

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

    def opened(self, cell: Cell) -> Decoder:
        return open_base(self.model, cell.base, offline=self.offline)

    def attempt(self, cell: Cell, model: Decoder) -> tuple[dict[str, Any], Iterable[Any]]:
        measured = run(cell, model, self.plan, self.texts(cell.shift), self._home)
        return measured, () if model.adapters is None else (model.adapters.owner.adapters["a"].method,)

    def beside(self, cell: Cell) -> dict[str, Any]:
        return {"weights": self._plain.size, **self.frozen(cell, self.texts(cell.shift))}

    def inputs(self, cell: Cell) -> Any:
        return [self.texts(cell.shift).digest, self._home.digest]

    def told(self, cell: Cell, found: dict[str, Any]) -> str:
        what = f"{cell.shift}: {cell.spec or FULL}{'' if cell.base == 'float32' else ' on ' + cell.base} at {cell.rate:g}"
        if "after" not in found:
            return f"{what}: {found.get('diverged') or found.get('error')}"
        return (f"{what}: {found['before']:.3f} -> {found['after']:.3f}, home {found['home_before']:.3f} -> "
                f"{found['home_after']:.3f}, {found['values']:,} values, {found['seconds']:.0f} s")

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
            said = next((s for s in self.plan.shifts if s.name == shift), None)
            if said is None:
                raise UsageError(f"the plan has no text {shift!r}")
            self._texts[shift] = texts(said, self.plan, self.root, self._plain.tokenizer)
        return self._texts[shift]


def chosen_by(record: Record) -> float:
    """The loss by which the best rate is found; infinite where the run failed."""
    return record.measured.get("chosen_by", math.inf)


def ran(records: Iterable[Record]) -> list[Record]:
    """Those of this suite that have a result."""
    return [record for record in records if record.suite == SUITE and "after" in record.measured]
