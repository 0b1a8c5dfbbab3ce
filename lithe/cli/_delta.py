"""What `lithe delta` does, an action a function; each returns plain JSON."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lithe.bench.evaluate import documents, evaluate
from lithe.cli._common import table
from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.registry import Spec, near
from lithe.tune import difference, packed, trial
from lithe.tune.difference import Change


@dataclass(frozen=True, kw_only=True)
class Order:
    """The options of the verb."""

    places: list[str]
    out: Path | None = None
    specs: list[str]
    weights: list[float] | None = None
    valid: str | None = None
    unlabelled: str | None = None
    text: str | None = None
    seeds: int = 3
    start: str | None = None
    seed: int = 0
    threads: int | None = None
    offline: bool = False

    @property
    def methods(self) -> list[Spec]:
        return difference.parse(self.specs)

    def change(self, place: str) -> Change:
        return difference.between(self.places[0], place, start=self.start, offline=self.offline)

    def trial(self) -> trial.Trial:
        return trial.Trial(self.places[0], offline=self.offline, threads=self.threads)


# By action: how many folders it takes, and the options that mean something to it
TAKES: dict[str, tuple[range, set[str]]] = {
    "pack": (range(2, 3), {"out", "specs", "valid", "unlabelled", "start"}),
    "apply": (range(2, 3), {"out", "start"}),
    "merge": (range(3, 100), {"out", "specs", "weights", "valid", "start"}),
    "eval": (range(2, 100), {"specs", "text", "start"}),
    "show": (range(1, 100), set()),
}
SPOKEN = {"specs": "method", "weights": "weight"}  # options that repeat are said in the singular


def run(action: str, order: Order) -> dict[str, Any]:
    """Do it. Raises UsageError for an action or options that are not its own."""
    if action not in TAKES:
        raise UsageError(f"there is no action {action!r:.40}{near(action, TAKES)}")
    count, options = TAKES[action]
    if len(order.places) not in count:
        more = " or more" if len(count) > 1 else ""
        raise UsageError(f"lithe delta {action} takes {count.start}{more} folders, not {len(order.places)}")
    given = {name for name in ("out", "specs", "weights", "valid", "unlabelled", "text", "start") if getattr(order, name)}
    if strange := sorted(given - options):
        raise UsageError(f"lithe delta {action} has no use for --{SPOKEN.get(strange[0], strange[0])}")
    needed = {"out", "text"} & options
    if missing := sorted(needed - given):
        raise UsageError(f"lithe delta {action} needs --{missing[0]}")
    if order.out is not None:
        packed.fresh(order.out)
    return {"pack": pack, "apply": apply, "merge": merge, "eval": score, "show": look}[action](order)


def pack(order: Order) -> dict[str, Any]:
    change = order.change(order.places[1])
    made = lambda specs: difference.through(change, specs, order.seed)
    specs, tried = chosen(order, made, change)
    difference.pack(made(specs), order.out)  # type: ignore[arg-type]
    return {"out": str(order.out), "tried": tried, **facts(packed.read(order.out))}  # type: ignore[arg-type]


def apply(order: Order) -> dict[str, Any]:
    change = order.change(order.places[1])
    difference.apply(change, order.out)  # type: ignore[arg-type]
    return {"out": str(order.out), "what": change.before.what, "methods": list(change.methods), "values": change.before.size}


def merge(order: Order) -> dict[str, Any]:
    changes = [order.change(place) for place in order.places[1:]]
    weights = order.weights or [1.0] * len(changes)
    made = lambda specs: difference.merged(changes, weights, specs, order.seed)
    specs, tried = chosen(order, made, None)
    whole = made(specs)
    difference.apply(whole, order.out)  # type: ignore[arg-type]
    return {"out": str(order.out), "what": whole.before.what, "methods": list(whole.methods), "weights": weights,
            "tried": tried}


def score(order: Order) -> dict[str, Any]:
    """Loss of the base, of each difference as it is, and of what methods leave of it, with the share of the gain kept."""
    stage, judge, specs = order.trial(), loss(order.text), order.methods
    base = stage.judge(None, judge)
    rows: list[dict[str, Any]] = []
    random = any(getattr(spec.entry.module, "RANDOM", False) for spec in specs)
    for place in order.places[1:]:
        change = order.change(place)
        whole = stage.judge(change, judge)
        kept = lambda found, whole=whole: (base - found) / (base - whole) if base != whole else None
        row: dict[str, Any] = {"folder": place, "loss": whole}
        if specs:
            found = [stage.judge(difference.through(change, specs, seed), judge)
                     for seed in range(order.seed, order.seed + (order.seeds if random else 1))]
            row |= {"methods": [str(spec) for spec in specs], "losses": found, "mean": statistics.mean(found),
                    "deviation": statistics.stdev(found) if len(found) > 1 else None, "kept": kept(statistics.mean(found)),
                    "bytes": size(difference.through(change, specs, order.seed))}
        rows.append(row)
    return {"base": order.places[0], "text": order.text, "loss": base, "rows": rows}


def look(order: Order) -> dict[str, Any]:
    """What packed differences hold; of several, how alike they are."""
    found = [packed.read(Path(place)) for place in order.places]
    told: dict[str, Any] = {"deltas": [facts(one) for one in found]}
    if len(found) > 1:
        told["cosines"] = [[difference.cosine(a, b) for b in found] for a in found]
    return told


def facts(made: packed.Packed) -> dict[str, Any]:
    notes = made.notes
    return {"folder": str(made.folder), "what": notes.what, "base": notes.base, "start": notes.start,
            "methods": list(notes.methods), "seed": notes.seed, "values": notes.values, "bytes": made.bytes,
            "bits_per_value": 8 * made.bytes / max(1, notes.values), "forms": made.forms(),
            "times_smaller_than_16_bit": 2 * notes.values / made.bytes}


def chosen(order: Order, make: Callable[[list[Spec]], Change],
           change: Change | None) -> tuple[list[Spec], list[tuple[str, float]]]:
    """The methods asked for, their open knobs chosen where a text is given to choose by."""
    if order.valid and order.unlabelled:
        raise UsageError("--valid and --unlabelled both say what to choose by: give one")
    specs = order.methods
    if not order.valid and not order.unlabelled:
        return specs, []
    if not any(getattr(spec.entry.module, "GRID", {}).keys() - spec.values.keys() for spec in specs):
        raise UsageError("there is no knob left to choose: give a method that has one, and do not say its value")
    stage = order.trial()
    if order.valid:
        judge = loss(order.valid)
    else:
        texts = documents(order.unlabelled)  # type: ignore[arg-type]
        judge = trial.nearness(stage, change, texts)  # type: ignore[arg-type]
    return trial.choose(stage, make, specs, judge)


def loss(file: str | None) -> Callable[[Decoder], float]:
    """Nats a token of a text."""
    texts = documents(file)  # type: ignore[arg-type]
    return lambda model: evaluate(model, texts).nll


def size(change: Change) -> int:
    """Bytes of the folder that it packs to."""
    with tempfile.TemporaryDirectory() as place:
        return packed.read(difference.pack(change, Path(place) / "packed")).bytes


def show(told: dict[str, Any]) -> None:
    for name, found in told.get("tried", ()):
        print(f"tried {name}: {found:.4f}")
    if "rows" in told:
        print(f"{told['loss']:.4f} nats a token: {told['base']}")
        for row in told["rows"]:
            print(f"{row['loss']:.4f} with {row['folder']}")
            if "mean" in row:
                spread = "" if row["deviation"] is None else f" ± {row['deviation']:.4f} over {len(row['losses'])} seeds"
                kept = "" if row["kept"] is None else f", {row['kept']:.1%} of the gain"
                print(f"{row['mean']:.4f}{spread} through {' + '.join(row['methods'])}{kept}, {row['bytes']:,} bytes")
    for one in told.get("deltas", [told] if "forms" in told else []):
        print(f"{one['folder']}: {' + '.join(one['methods']) or 'exact'}, {one['values']:,} values ({one['what']}) in "
              f"{one['bytes']:,} bytes, {one['bits_per_value']:.3f} bits a value, {one['times_smaller_than_16_bit']:.1f} times "
              "smaller than 16-bit ones")
        table(("form", "tensors", "values", "bytes"), [(form, *row.values()) for form, row in one["forms"].items()])
    for line in told.get("cosines", ()):
        print("  ".join("   -   " if cell is None else f"{cell:+.4f}" for cell in line))
    if "out" in told and "forms" not in told:
        print(f"wrote {told['out']}")
