"""The loop's filled slots, checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lithe import registry
from lithe.diffuse.canvas import Canvas, Guess
from lithe.diffuse.passes import Reader
from lithe.diffuse.plain import Anew, Surest, Whole
from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.sampling.sequence import Sequence

ROOM = "diffuse"
SLOTS = ("schedule", "refresh", "unmask", "revise", "stop", "route")
PASS = "route"  # the slot that belongs to passes, not to a canvas


@dataclass
class Kit:
    """One canvas's own parts: what a method remembers is of that canvas alone."""

    schedule: Any
    refresh: Any
    unmask: Any
    revise: Any = None
    stop: Any = None


@dataclass(kw_only=True)
class DiffusePlan:
    """Everything `run` needs."""

    model: Decoder
    reader: Reader
    specs: dict[str, registry.Spec]
    name: str = "plain"
    source: str = ""
    promises: tuple[str, ...] = ()
    knobs: dict[str, Any] = field(default_factory=dict)
    unmasks: Iterator[Any] | None = None  # parts that stand in that slot instead, one a canvas: for what watches or foresees
    watch: Callable[[Canvas, Guess], None] | None = None  # is shown each pass's guess before anything is committed
    loaded: dict[str, Any] = field(default_factory=dict)  # what a method read once for all canvases
    runs: list[Any] = field(default_factory=list)  # canvases of the last run and what was spent on them

    @property
    def mask(self) -> int:
        return int(self.model.config.mask_token or 0)

    def drop(self, sequence: Sequence) -> None:
        """Forget a canvas that will not be filled to its end."""
        for each in self.runs:
            if each.canvas.sequence is sequence:
                self.reader.forget(each.canvas)
        self.runs = [each for each in self.runs if each.canvas.sequence is not sequence]

    def kit(self) -> Kit:
        """Fresh parts for one canvas; plain ones where no method was named."""
        blockwise = self.model.config.attends == "blocks"
        made = {slot: self._part(slot, spec) for slot, spec in self.specs.items() if slot != PASS}
        plain = {"schedule": Whole(self.model.config.block), "refresh": Anew(blockwise), "unmask": Surest()}
        if self.unmasks is not None:
            made["unmask"] = next(self.unmasks)
        return Kit(**(plain | made))

    def _part(self, slot: str, spec: registry.Spec) -> Any:
        kind = spec.entry.module.Method
        if not hasattr(kind, "load"):
            return kind(spec.knobs, self.model)
        if slot not in self.loaded:
            self.loaded[slot] = kind.load(spec.knobs, self.model)
        return kind(spec.knobs, self.model, self.loaded[slot])


def plan(model: Decoder, *methods: str) -> DiffusePlan:
    """Fill a plan from specs, each of one of the shelves schedule, refresh, unmask, revise and stop; "a + b" names several.

    Raises UnsupportedError for what this model or combination cannot do.
    """
    if model.config.attends == "causal":
        raise UnsupportedError(f"{model.source or 'this model'} reads from left to right: diffusion methods fill masked places")
    specs: dict[str, registry.Spec] = {}
    for text in (part for joined in methods for part in joined.split(" + ")):
        spec = registry.parse(text)
        slot = spec.entry.shelf
        if spec.entry.room != ROOM or slot not in SLOTS:
            raise UsageError(f"{spec.entry.address} has no slot in a diffusion plan: it takes {', '.join(SLOTS)}")
        if slot in specs:
            raise UsageError(f"slot {slot} is filled twice, by {specs[slot]} and {spec}")
        specs[slot] = spec
    made = DiffusePlan(model=model, reader=Reader(model), specs={slot: specs[slot] for slot in SLOTS if slot in specs})
    _check(made)
    if PASS in specs:
        made.reader.route = made._part(PASS, specs[PASS])
    made.kit()  # what a part cannot be made of is told at once
    made.name = " + ".join(map(str, made.specs.values())) or "plain"
    made.source = next((specs[slot].entry.name for slot in ("revise", "unmask") if slot in specs), "")
    made.promises = _promises(made)
    made.knobs = {f"{slot}.{key}": value for slot, spec in made.specs.items()
                  for key, value in dataclasses.asdict(spec.knobs).items()}
    return made


def _check(made: DiffusePlan) -> None:
    """What methods say they need, against the model and each other."""
    config = made.model.config
    offered = {config.attends, *(["experts"] if config.experts else []), *made.specs}
    offered |= {f"no {slot}" for slot in SLOTS if slot not in made.specs}
    for spec in made.specs.values():
        missing = [need for need in spec.entry.card.needs if need not in offered]
        if missing:
            raise UnsupportedError(f"{spec.entry.name} needs {', '.join(missing)}, which this model and plan do not offer")


def _promises(made: DiffusePlan) -> tuple[str, ...]:
    """What all parts promise: with none but plain ones, everything."""
    cards = [spec.entry.card for spec in made.specs.values()]
    return tuple(word for word in ("same_tokens",) if all(word in card.promises for card in cards))
