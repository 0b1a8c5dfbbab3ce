"""Budgets: what the options of each group cost, and which one each gets. An `Allocation` is plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lithe.compress.groups import MIXED, UNITS, Group, Level
from lithe.errors import FormatError, UnsupportedError, UsageError

Plan = dict[str, Level]  # a level for each group, by its name


@dataclass(frozen=True, kw_only=True)
class Option:
    """A level that a group may get. cost: stored bytes of the group's weights, scales included."""

    level: Level
    cost: float


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What each group gets. cost and budget: in bytes of all groups; full: what they take as they are."""

    unit: str
    levels: Plan
    cost: float
    budget: float
    full: float
    notes: dict[str, Any] = field(default_factory=dict)  # what the allocator tells of its search

    def json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, raw: object, where: str = "plan") -> Allocation:
        """From JSON. Raises FormatError for what is no allocation."""
        fields = {"unit", "levels", "cost", "budget", "full", "notes"}
        known = (*UNITS, MIXED)
        if not isinstance(raw, dict) or raw.keys() != fields or raw["unit"] not in known or not isinstance(raw["notes"], dict):
            raise FormatError(f"{where}: an allocation has {', '.join(sorted(fields))}; its unit is one of {', '.join(known)}")
        levels = raw["levels"]
        good = isinstance(levels, dict) and all(type(v) in (int, float, str, type(None)) for v in levels.values())
        if not good or any(type(raw[name]) not in (int, float) for name in ("cost", "budget", "full")):
            raise FormatError(f"{where}: levels must be numbers or ways by group, and cost, budget and full numbers")
        return cls(**raw)

    @classmethod
    def read(cls, path: str | Path) -> Allocation:
        """From a file of JSON, such as --dry-run prints."""
        try:
            return cls.of(json.loads(Path(path).read_text()), str(path))
        except OSError as problem:
            raise UsageError(f"cannot read {path}: {problem.strerror}") from None
        except ValueError as problem:
            raise FormatError(f"{path} is not JSON: {problem}") from None


@dataclass(kw_only=True)
class Problem:
    """What an allocator decides on. options: of each group, cheapest first. budget: bytes for all groups together.

    Three things are worked out only when asked for: `scores` of units and `errors` of options, each of its group alone, and
    `loss`, measured end to end.
    """

    groups: list[Group]
    options: dict[str, list[Option]]
    budget: float
    seed: int = 0
    find_scores: Callable[[], Mapping[str, Tensor]] | None = None
    find_blocks: Callable[..., list[float]] | None = None
    find_loss: Callable[[Plan, int], float] | None = None
    find_errors: Callable[[], Mapping[str, list[float]]] | None = None
    find_slope: Callable[[list[Group], float, int], float] | None = None
    find_store: Callable[[Mapping[str, Sequence[Level]], str], None] | None = None  # None: any level can be measured as it is
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> float:
        """The cost of every group's richest option."""
        return sum(options[-1].cost for options in self.options.values())

    @property
    def least(self) -> float:
        return sum(options[0].cost for options in self.options.values())

    @property
    def share(self) -> float:
        """The budget as a share of the full cost."""
        return self.budget / self.full

    @cached_property
    def unit_scores(self) -> Mapping[str, Tensor]:
        """The step's importance of each unit [U], by group, from the dense model: higher is kept."""
        return _asked(self.find_scores, "scores: name an importance beside it")()

    def block_scores(self, metric: str, layers: Sequence[int] | None = None) -> list[float]:
        """How much each block changes the residual stream (calibrate.METRICS), by layer, in the dense model. layers: where only
        these run, in this order."""
        found = _asked(self.find_blocks, "a calibration text")
        return found(metric) if layers is None else found(metric, layers)

    def slope(self, groups: list[Group], step: float, samples: int) -> float:
        """The mean of |L+ - L-| / 2 step, the losses of single calibration rows where all weights of the groups are moved along
        one random direction, up and down: how steep the loss is, without a gradient."""
        return _asked(self.find_slope, "a calibration text")(groups, step, samples)

    def store(self, levels: Mapping[str, Sequence[Level]], carry: str = "dense") -> None:
        """Make these levels of each group anew, and no others, for `loss`. carry: what the blocks behind a block are calibrated
        on: "dense", its "middle" level, or the mean of its levels weighted by what they keep ("expected")."""
        if self.find_store is not None:
            self.find_store(levels, carry)

    def loss(self, plan: Plan, tokens: int = 0) -> float:
        """KL from the dense model's predictions, in nats a token, on so many calibration tokens (0: all)."""
        return _asked(self.find_loss, "a calibration text")(plan, tokens)

    def errors(self, tokens: int = 0) -> Mapping[str, list[float]]:
        """Of each group's options the loss where only this group is compressed, as if losses added up, on so many calibration
        tokens (0: all). That of the richest is 0."""
        if self.find_errors is not None:
            return self.find_errors()
        rich = {name: options[-1].level for name, options in self.options.items()}
        base, gone = self.loss(rich, tokens), {site for sites in self.bound.values() for site in sites}
        alone = lambda name, i: 0.0 if not i and name in gone else self.loss(rich | self._lowest(name, i), tokens) - base
        return {name: [*(alone(name, i) for i in range(len(options) - 1)), 0.0] for name, options in self.options.items()}

    def _lowest(self, name: str, i: int) -> Plan:
        """A group at an option, and what is bound to it."""
        bound = self.bound.get(name, ()) if not i else ()
        return {name: self.options[name][i].level} | {site: self.options[site][0].level for site in bound}

    @cached_property
    def bound(self) -> dict[str, tuple[str, ...]]:
        """Halves that may go beside the sites that go with them: all of a half are at their lowest option, or none is."""
        return {group.name: group.sites for group in self.groups
                if group.unit == "half" and group.sites[0] in self.options and len(self.options[group.name]) > 1}

    def whole(self, plan: Plan) -> bool:
        """Whether halves and their sites go together."""
        low = lambda name: plan.get(name, self.options[name][-1].level) == self.options[name][0].level
        return all(low(site) == low(half) for half, sites in self.bound.items() for site in sites)

    def standing(self) -> Problem:
        """The same where no half may go."""
        going = {name for half, sites in self.bound.items() for name in (half, *sites)}
        return replace(self, options={name: options[name in going :] for name, options in self.options.items()})

    def cost(self, plan: Plan) -> float:
        """Bytes of a plan. Raises UsageError for a level that is no option."""
        total = 0.0
        for name, options in self.options.items():
            found = [option.cost for option in options if option.level == plan.get(name, options[-1].level)]
            if not found:
                raise UsageError(f"{name} cannot get level {plan[name]!r}; it has {[o.level for o in options]!r:.120}")
            total += found[0]
        return total

    def check(self) -> None:
        """Raise UsageError for a budget that no plan meets."""
        if self.least > self.budget * (1 + 1e-9):
            beside = "" if self.budget >= 0 else " (what this step leaves alone takes more than what was asked for)"
            raise UsageError(f"the budget of {self.budget:,.0f} bytes cannot be met{beside}: the groups take "
                             f"{self.least:,.0f} at least, {self.full:,.0f} as they are")


def _asked(found: Callable | None, what: str) -> Callable:
    if found is None:
        raise UnsupportedError(f"this allocation needs {what}")
    return found
