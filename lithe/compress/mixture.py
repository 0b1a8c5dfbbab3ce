"""Mixtures: steps in which each linear site gets one of several ways, and halves of blocks may go, all under one budget.

    way:bits=3,levels=2+3+4 | other:levels=0.5+0.6 | third:levels=64 | importance:unit=half + allocation

Ways stand between bars, each with the levels that it offers. One of them says the budget, one names the allocation,
if it is not to be the usual one, which measures losses. A level reads "way=number". What a level costs is what folders take,
so that ways compare. A half that goes takes its sites along.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lithe.compress import step as steps
from lithe.compress.allocation import Option
from lithe.compress.change import Change
from lithe.compress.groups import MIXED, SITE_UNITS, Group, Level, find
from lithe.compress.step import ACTS, Step, Target
from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.registry import Spec

BAR = "|"
USUAL = {"bits": (2.0, 3.0, 4.0, 8.0), "entry": (0.5, 0.6)}  # levels of a way that says none
RANKS = 16  # of the ranks of a way that says none every so manieth is offered
SAID = ("ratio", "bits", "bytes")  # how much may be left of all


def parse(text: str) -> Step:
    """Read a step, or a mixture of several. Raises UsageError as `step.parse` does."""
    if BAR not in text:
        return steps.parse(text)
    target: dict[str, Any] = {}
    shared: dict[str, Spec] = {}
    ways: dict[str, Step] = {}
    for part in text.split(BAR):
        own, specs = _read(part, text)
        said = {word: own.pop(word) for word in (*SAID, "plan") if word in own}
        if len({*target, *said} & {*SAID}) > 1 or target.keys() & said.keys():
            raise UsageError(f"{text!r} says its budget or its plan twice")
        target |= said
        if "allocate" in specs and shared:
            raise UsageError(f"{text!r} names two allocations")
        shared |= {shelf: specs.pop(shelf) for shelf in ("allocate",) if shelf in specs}
        if not specs:
            raise UsageError(f"{text!r}: {part.strip()!r} is no way of its own: join it to one by \" + \"")
        way = _way(part.strip(), own, specs)
        ways[_label(way, ways)] = way
    if not target.keys() & {*SAID}:
        raise UsageError(f"{text!r} must say once how much: bits=3, ratio=0.8 (share that goes) or bytes=0.3")
    if not shared and "plan" not in target and not (shared := steps.usual(MIXED)):
        raise UsageError(f"{text!r} must name an allocation, best one that measures losses: ways alike in bytes differ there")
    return Mixture(text, steps._target(target, text), shared, ways)


@dataclass
class Mixture(Step):
    """A step of several ways, by their labels. Its own settings are the budget and the plan, its own method the allocation."""

    ways: dict[str, Step] = field(default_factory=dict)
    groups_of: dict[str, dict[str, Group]] = field(default_factory=dict)

    @property
    def exact(self) -> str:
        texts = [way.exact for way in self.ways.values()]
        said = ",".join(f"{f.name}={value}" for f in dataclasses.fields(Target)
                        if (value := getattr(self.target, f.name)) != f.default)
        head, plus, tail = texts[0].partition(" + ")
        texts[0] = head + ("," if ":" in head else ":") + said + plus + tail
        return f" {BAR} ".join(texts) + "".join(f" + {spec.exact}" for spec in self.specs.values())

    @property
    def needs(self) -> set[str]:
        return super().needs.union(*(way.needs for way in self.ways.values()))

    @property
    def unit(self) -> str:
        return MIXED

    @property
    def units(self) -> set[str]:
        return {unit for way in self.ways.values() for unit in way.units}

    @property
    def parts(self) -> list[Any]:
        return [self.allocate, *(part for way in self.ways.values() for part in way.parts)]

    def groups(self, model: Decoder) -> list[Group]:
        """Every linear site that a way is about, and the halves that may go, behind the sites of their block."""
        self.groups_of = {label: {group.name: group for group in way.groups(model)} for label, way in self.ways.items()}
        found = [group for groups in self.groups_of.values() for group in groups.values()]
        wanted = {group.name for group in found if group.unit != "half"}
        halves = [dataclasses.replace(group, weights=0) for group in found if group.unit == "half"]  # its sites count them
        if missing := [site for half in halves for site in half.sites if site not in wanted]:
            raise UsageError(f"{self.text!r}: {missing[0]} can go with its half, but no way says what else it may be")
        sites = [dataclasses.replace(group, unit=MIXED) for group in find(model, "bits") if group.name in wanted]
        return sorted([*sites, *halves], key=lambda group: group.layer)

    def options(self, model: Decoder, groups: list[Group], item: int) -> dict[str, list[Option]]:
        """What each group may get, cheapest first; what is dearer than a site as it is, is left out."""
        going = {site for group in groups if group.unit == "half" for site in group.sites}
        found: dict[str, list[Option]] = {}
        for group in groups:
            if group.unit == "half":
                found[group.name] = [Option(level=level, cost=0.0) for level in (0, 1)]
                continue
            full = Option(level=None, cost=float(group.weights * item))
            made = [option for label in self.ways for option in self._of(label, model, group.name, item)]
            cheaper = sorted((option for option in made if option.cost < full.cost), key=lambda option: option.cost)
            found[group.name] = [Option(level=0, cost=0.0)] * (group.name in going) + [*cheaper, full]
        return found

    def _of(self, label: str, model: Decoder, name: str, item: int) -> list[Option]:
        """What one way offers a site."""
        own, way = self.groups_of[label].get(name), copy.copy(self.ways[label])
        if own is None:
            return []
        levels = way.target.levels or USUAL.get(own.unit, ())
        way.target = dataclasses.replace(way.target, levels=levels, bytes=1.0)  # so that costs are those of a folder
        made = [option for option in way.options(model, [own], item)[name] if option.level]
        made = made[RANKS - 1 :: RANKS] if own.unit == "rank" and not levels else made
        return [Option(level=f"{label}={option.level:g}", cost=option.cost) for option in made]

    def change(self, group: Group, level: Level, source: Any) -> Change:
        """By the way that the level names, as if it stood alone."""
        if group.unit == "half":
            return Change() if level else Change(kept=source.weight(group.sites[0]).new_zeros(0).long())
        if not isinstance(level, str):
            return Change()
        label, _, number = level.rpartition("=")
        way, own = self.ways[label], self.groups_of[label][group.name]
        seen = dataclasses.replace(source, scorer=way.importance, target=way.target)
        return way.change(own, float(number) if own.unit == "entry" else int(number), seen)


def _read(part: str, text: str) -> tuple[dict[str, Any], dict[str, Spec]]:
    """A way's own settings and the methods that it names."""
    own: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    for piece in filter(None, (piece.strip() for piece in part.split(" + "))):
        for shelf, spec in steps._piece(piece, own):
            if shelf in specs and specs[shelf].entry != spec.entry:
                raise UsageError(f"{text!r} names two methods of {shelf} in one way")
            specs[shelf] = spec
    return own, specs


def _way(text: str, own: dict[str, Any], specs: dict[str, Spec]) -> Step:
    """A step that only offers its levels."""
    way = Step(text, steps._target(own, text), {shelf: specs[shelf] for shelf in (*steps.SHELVES, "recover") if shelf in specs})
    if way.recover is not None or way.unit not in (*SITE_UNITS, "half"):
        raise UnsupportedError(f"{text!r} cannot be a way of a mixture: those are about {', '.join(SITE_UNITS)} or half")
    if any(hasattr(way.act, verb) for verb in ("prepare", "smooth", "block")):
        raise UnsupportedError(f"{text!r} works on several sites at once, which a mixture cannot: make it a step of its own")
    if way.target.rank is not None or way.target.pattern or way.target.count != "stored":
        raise UsageError(f"{text!r}: a way says levels=..., and counts what is stored")
    return way


def _label(way: Step, taken: dict[str, Step]) -> str:
    """A name for a way: its method's, numbered from the second of that name on."""
    name = next(way.specs[shelf].entry.name for shelf in (*ACTS, "importance") if shelf in way.specs)
    return next(label for label in (name, *(f"{name}.{n}" for n in range(2, len(taken) + 2))) if label not in taken)
