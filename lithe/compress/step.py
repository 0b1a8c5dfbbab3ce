"""Steps: what a text such as "wanda:ratio=0.5 + evopress" asks for, and the options it gives each group.

A step names one thing that acts (of prune, quantize or factorize) or an importance alone, whose least units then go; beside
them an importance and an allocation, if it wants; where bits may differ from site to site, losses are measured and
dealt by, unless an allocation is named. A bare name stands for all that a paper has on these shelves. Steps of
`recover` stand alone. Knobs are the step's own (`Target`) or those of the methods that it names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lithe import registry
from lithe.card import check_knobs, knob
from lithe.compress import masking, solve
from lithe.compress.allocation import Option, Plan, Problem
from lithe.compress.groups import UNITS, Group, Level, find, known as units_of
from lithe.compress.options import levels_of, widths
from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.registry import Entry, Spec, near

ROOM, ACTS = "compress", ("prune", "quantize", "factorize")
SHELVES = ("importance", "allocate", *ACTS)


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much, of what."""

    ratio: float | None = knob(None, "share of the weights it is about that goes", low=0, high=0.99)
    bits: float | None = knob(None, "average bits of a weight, scales included where there is a choice", low=1, high=16)
    bytes: float | None = knob(None, "share of the whole model's bytes that may be left", low=0.01, high=1)
    rank: int | None = knob(None, "inner width of a factored layer, the same for all", low=1)
    pattern: str = knob("", "entries kept of neighbours, such as 2:4")
    count: str = knob("stored", "what bits cost: as packed, or nominal, as if a kind were so narrow",
                      choices=("stored", "nominal"))
    group: int = knob(32, "inputs that share a scale: 32, 128, or -1 for all", choices=(32, 128, -1))
    levels: tuple[float, ...] = knob((), "levels that a group may get, joined by +; chosen by its unit where not given")
    sites: str = knob("*", "linear layers it is about, patterns joined by +, such as mlp.*+q_proj")
    unit: str = knob("", "what goes, of what the method knows: " + ", ".join(UNITS))
    multiple: int = knob(0, "channels are kept in multiples of this; 0: 32, or 8 in narrow models", low=0)
    plan: str = knob("", "file with the levels to take, as --dry-run prints them, instead of solving for them")
    sequential: bool = knob(True, "each block is calibrated on what the compressed blocks before it give")


@dataclass
class Step:
    """A step, read and made. importance and allocate may be None: then the act needs none, and all groups share alike."""

    text: str
    target: Target
    specs: dict[str, Spec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        made = {shelf: spec.entry.module.Method(spec.knobs) for shelf, spec in self.specs.items()}
        self.importance, self.allocate, self.recover = (made.get(name) for name in ("importance", "allocate", "recover"))
        self.act = next((made[shelf] for shelf in ACTS if shelf in made), None)
        self.shelf = next((shelf for shelf in (*ACTS, "recover") if shelf in made), "prune")

    @property
    def exact(self) -> str:
        """Text that parses back to this step."""
        own = [f"{f.name}={_text(value)}" for f in dataclasses.fields(Target)
               if (value := getattr(self.target, f.name)) != f.default]
        specs = [f"{shelf}={spec.exact}" if not spec.entry.card.shelf else spec.exact for shelf, spec in self.specs.items()]
        head = specs[0] + ("," if ":" in specs[0] else ":") + ",".join(own) if own else specs[0]
        return " + ".join([head, *specs[1:]])

    @property
    def needs(self) -> set[str]:
        """Words of the cards of all that it names."""
        return {word for spec in self.specs.values() for word in spec.entry.card.needs}

    @property
    def unit(self) -> str:
        """The unit that it works on: of all that its methods know the one asked for, or the first."""
        known = units_of(getattr(self.act or self.importance, "units", ()))
        if self.target.unit and self.target.unit not in known:
            raise UnsupportedError(f"{self.text!r} knows the units {', '.join(known)}, not {self.target.unit!r}")
        chosen = self.target.unit or (known[0] if known else "")
        if not chosen:
            raise UsageError(f"{self.text!r} names nothing that acts: name an importance, or a method that prunes, quantizes "
                             "or factorizes")
        scored = getattr(self.importance, "units", None)
        if scored is not None and chosen not in units_of(scored):
            raise UnsupportedError(f"{self.text!r}: its importance scores {', '.join(scored)}, not {chosen}")
        return chosen

    @property
    def units(self) -> set[str]:
        """All units that it works on."""
        return {self.unit}

    @property
    def parts(self) -> list[Any]:
        """The methods that do its work."""
        return [self.importance, self.allocate, self.act, self.recover]

    def change(self, group: Group, level: Level, source: Any) -> Any:
        """What becomes of a group."""
        if self.act is not None and not hasattr(self.act, "change"):
            raise UnsupportedError(f"{self.text!r} fits whole blocks, so what one group loses alone cannot be measured: take "
                                   "an allocation that does not ask")
        return masking.plain(group, level, source) if self.act is None else self.act.change(group, level, source)

    def solve(self, problem: Problem) -> Plan:
        """A level for each group."""
        if self.allocate is not None:
            return self.allocate.solve(problem)
        return solve.ranked(problem) if self.unit in ("half", "layer") else solve.uniform(problem)

    def groups(self, model: Decoder) -> list[Group]:
        found, wants = find(model, self.unit, self.target.sites), getattr(self.act, "wants", None)
        return found if wants is None else [group for group in found if wants(group)]

    def options(self, model: Decoder, groups: list[Group], item: int) -> dict[str, list[Option]]:
        """What each group may get, cheapest first. item: bytes of a weight as stored."""
        own = getattr(self.act, "options", None)
        ask = lambda g: own(g, model.get_submodule(g.sites[0]), self.target, item) if own else levels_of(self, model, g, item)
        made = {group.name: ask(group) for group in groups}
        return {name: sorted(options, key=lambda option: option.cost) for name, options in made.items()}

    def budget(self, groups: list[Group], options: dict[str, list[Option]], rest: float) -> float:
        """Bytes that the groups may take together. rest: bytes of the model that no group holds."""
        target, full = self.target, sum(found[-1].cost for found in options.values())
        weights = sum(group.weights for group in groups)
        if target.bytes is not None:
            return target.bytes * (rest + full) - rest
        if target.ratio is not None:
            return (1 - target.ratio) * full
        if target.bits is not None and any(len(found) > 1 for found in options.values()):
            return target.bits * weights / 8
        return min(full, sum(found[0].cost for found in options.values()))  # one level was said for all


def parse(text: str) -> Step:
    """Read a step. Raises UsageError for what is unknown, named twice or lacks a budget."""
    target: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    for piece in filter(None, (part.strip() for part in text.split(" + "))):
        for shelf, spec in _piece(piece, target):
            if shelf in specs and specs[shelf].entry != spec.entry:
                raise UsageError(f"{text!r} names two methods of {shelf}: {specs[shelf].entry.name} and {spec.entry.name}")
            specs[shelf] = spec
    if "allocate" not in specs and _chooses(Step(text, _target(target, text), specs)):
        specs |= usual("bits")
    acting = [shelf for shelf in ACTS if shelf in specs]
    if len(acting) > 1:
        raise UsageError(f"{text!r} acts twice, by {' and '.join(acting)}: give them as two steps")
    if "recover" in specs and len(specs) > 1:
        raise UsageError(f"{text!r}: recovery is a step of its own; give it as another --method")
    step = Step(text, _target(target, text), {shelf: specs[shelf] for shelf in (*SHELVES, "recover") if shelf in specs})
    if not specs:
        raise UsageError("an empty step names no method")
    _check_budget(step)
    return step


def _chooses(step: Step) -> bool:
    """Whether sites may get bits of their own, and what one loses can be told from what others lose."""
    target, single = step.target, hasattr(step.act, "change") and "bits" in getattr(step.act, "units", ())
    asked = target.bits is not None or target.bytes is not None or target.ratio is not None
    return single and asked and not target.plan and (target.bytes is not None or len(widths(step)) != 1)


def usual(unit: str) -> dict[str, Spec]:
    """The allocation of steps on a unit that name none, as its file says; none where there is no such file."""
    found = [entry for entry in registry.entries(ROOM, "allocate") if unit in getattr(entry.module, "USUAL", ())]
    return {"allocate": Spec(found[0], {})} if found else {}


def _piece(text: str, target: dict[str, Any]) -> Iterable[tuple[str, Spec]]:
    """The methods that one piece of a step names; the step's own knobs go into `target`."""
    head, _, tail = registry._split_path(text)
    values = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key in values:
            raise UsageError(f"{text!r}: {item!r} is not knob=value, or says a knob twice")
        values[key] = value
    found = _named(head, text)
    own = set() if {entry.shelf for entry in found} == {"recover"} else {f.name for f in dataclasses.fields(Target)}
    target.update({key: value for key, value in values.items() if key in own})
    values = {key: value for key, value in values.items() if key not in own}
    known = {entry.shelf: {f.name for f in dataclasses.fields(entry.module.Knobs)} for entry in found}
    if unknown := sorted(values.keys() - set().union(*known.values())):
        raise UsageError(f"{head} has no knob {unknown[0]!r}{near(unknown[0], own.union(*known.values()))}")
    for entry in found:
        spec = Spec(entry, {key: value for key, value in values.items() if key in known[entry.shelf]})
        _ = spec.knobs  # bad values are told at once
        yield entry.shelf, spec


def _named(head: str, text: str) -> list[Entry]:
    """The methods that a name stands for: one where a shelf or file is said, all parts of a paper otherwise."""
    shelf, equals, name = head.partition("=")
    if equals and shelf.isidentifier():
        return [registry.find(name, shelf)]
    if head.endswith(".py") or "/" in head:
        return [registry.find(head)]
    known = registry.entries(ROOM)
    parts = [entry for entry in known if entry.name == head]
    before = [entry for entry in parts if entry.shelf != "recover"]
    if not parts:
        raise UsageError(f"{text!r}: there is no method {head!r} that compresses{near(head, {entry.name for entry in known})}")
    return before or parts


def _target(values: dict[str, Any], text: str) -> Target:
    kinds = {"ratio": float, "bits": float, "bytes": float, "rank": int, "group": int, "multiple": int}
    made: dict[str, Any] = {}
    for key, value in values.items():
        made[key] = registry._convert(value, {"levels": tuple[float, ...], "sequential": bool}.get(key, kinds.get(key, str)),
                                      f"{text}: {key}")
    target = Target(**made)
    check_knobs(target, text)
    if target.pattern:
        masking.parts(target.pattern)
    return target


def _check_budget(step: Step) -> None:
    target = step.target
    said = [name for name in ("ratio", "bits", "bytes", "rank", "pattern") if getattr(target, name) not in (None, "")]
    if step.recover is None and len(said) != 1:
        ways = "ratio=0.3 (share that goes), bits=4, rank=64, pattern=2:4 or bytes=0.6 (share of the model's bytes left)"
        raise UsageError(f"{step.text!r} must say once how much: {ways}" + (f"; it says {' and '.join(said)}" if said else ""))


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
