"""The ledger of the parallel suite, asked by part and method; of records of the same cell the newest counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lithe.bench.ledger import Ledger, Record

ROOT = Path(__file__).resolve().parents[2]
LEDGER, MODEL = ROOT / "docs" / "ledger-parallel.jsonl", "zoo:tiny-diffusion"


class Book:
    """Records by model, part, seed, method and task."""

    def __init__(self, ledger: Path = LEDGER):
        self.held: dict[tuple, Record] = {}
        for r in Ledger(ledger).read():
            self.held[r.model, r.settings.get("part", ""), r.seed, r.method, r.settings.get("task", ""), str(r.settings)] = r

    def all(self, *, part: str = "", seed: int = 0, model: str = MODEL) -> list[Record]:
        return [r for (name, own, at, *_), r in self.held.items() if (name, own, at) == (model, part, seed)]

    def of(self, method: str, *, part: str = "", seed: int = 0, model: str = MODEL, tasks: object = None) -> list[Record]:
        """One method's records, of these tasks where given."""
        return [r for r in self.all(part=part, seed=seed, model=model)
                if r.method == method and (tasks is None or r.settings["task"] in tasks)]  # type: ignore[operator]

    def trained(self) -> Iterator[tuple[str, list[Record]]]:
        """What was trained, and the records of it: models, and filters beside the base."""
        labels = dict.fromkeys(name for name, part, *_ in self.held if part == "trained" and name != MODEL)
        for label in labels:
            yield label.removeprefix(f"{MODEL} + "), self.all(part="trained", model=label)
        for name in dict.fromkeys(r.knobs["unmask.heads"] for r in self.all(part="learn2pd")):
            spec = f"learn2pd, {name.rpartition('/filter-')[2].replace('-', ' wide, ').replace('shuffled', 'labels shuffled')}"
            yield spec, [r for r in self.all(part="learn2pd") if r.knobs["unmask.heads"] == name]
