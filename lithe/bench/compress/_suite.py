"""Ways of compressing, one after the other: compressed, saved, loaded again, scored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from lithe.bench import matrix
from lithe.bench.compress import DENSE, SUITE
from lithe.bench.compress._plan import Cell, Plan, cells
from lithe.bench.compress._score import Documents
from lithe.bench.ledger import Record
from lithe.compress import calibrate
from lithe.compress.api import compress
from lithe.compress.calibrate import Calibration
from lithe.compress.mixture import parse
from lithe.compress.rescale import outliers
from lithe.compress.surgery import copied
from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.model.narrow import widen


@dataclass
class Matrix(matrix.Matrix[Plan, Cell]):
    """A plan's ways of compressing, on a model and its twin."""

    _texts: dict[tuple[int, int], Calibration] = field(default_factory=dict)

    suite: ClassVar[str] = SUITE
    cell_kind: ClassVar[type] = Cell

    def open(self) -> None:
        plain = load(self.model, dtype="float32", fast=False, offline=self.offline)
        if plain.tokenizer is None:
            raise UsageError(f"{self.model} has no tokenizer, which reading text needs")
        self.models = {"plain": plain, "twin": outliers(copied(plain))}
        self.documents = Documents(plain, self.root / self.plan.held_out, self.plan.documents, self.plan.context)
        self._wanted = list(cells(self.plan))

    def missing(self) -> Iterator[Cell]:
        yield from (cell for cell in self._wanted if cell not in self.known)

    def opened(self, cell: Cell) -> Decoder:
        return self.models[cell.on]

    def attempt(self, cell: Cell, model: Decoder) -> tuple[dict[str, Any], Iterable[Any]]:
        began, cpu = time.perf_counter(), time.process_time()
        measured = self._dense(model) if cell.method == DENSE else self._compressed(cell, model)
        spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        return measured | {name: round(value, 1) for name, value in spent.items()}, _parts(cell)

    def _dense(self, model: Decoder) -> dict[str, Any]:
        assert model.folder is not None
        return {"bytes": sum(path.stat().st_size for path in model.folder.glob("*.safetensors")), **self.documents.score(model)}

    def _compressed(self, cell: Cell, model: Decoder) -> dict[str, Any]:
        """Compressed, saved, loaded again, scored."""
        with TemporaryDirectory() as place:
            found = compress(model, cell.steps.split(" ; "), calibration=self.text(cell), out=Path(place) / "m", seed=cell.seed)
            notes = [{key: value for key, value in note.items() if key != "health"} for note in found.report.get("steps", ())]
            return {"bytes": found.report["bytes"], "values": sum(w.numel() for w in found.model.parameters()),
                    **self.documents.score(widen(found.model)), "steps": notes,
                    "search_tokens": sum(plan.notes.get("search_tokens", 0) for plan in found.allocations)}

    def text(self, cell: Cell) -> Calibration | None:
        """The calibration text of a seed; none for what is not compressed."""
        if not cell.tokens:
            return None
        if (key := (cell.seed, cell.tokens)) not in self._texts:
            self._texts[key] = calibrate.read(self.root / self.plan.calibration, self.models["plain"], length=self.plan.length,
                                              tokens=cell.tokens, seed=cell.seed)
        return self._texts[key]

    def inputs(self, cell: Cell) -> Any:
        text = self.text(cell)
        return [self.documents.ids, None if text is None else text.digest]

    def cell_of(self, record: Record) -> Cell | None:
        cell = super().cell_of(record)
        return cell if cell in self._wanted else None

    def told(self, cell: Cell, found: dict[str, Any]) -> str:
        what = f"{cell.method} {'' if cell.ratio is None else cell.ratio} on {cell.on}, seed {cell.seed}"
        if "error" in found:
            return f"{what}: {found['error']}"
        return f"{what}: loss {found['loss']:.4f}, KL {found['kl']:.4f}, {found['bytes']:,} bytes, {found['seconds']:.0f} s"


def _parts(cell: Cell) -> list[Any]:
    """The methods that did the work."""
    steps = [parse(text) for text in filter(None, cell.steps.split(" ; "))]
    return [method for step in steps for method in step.parts]
