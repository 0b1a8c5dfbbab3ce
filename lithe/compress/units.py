"""Scores of weights and inputs gathered by the units of a group. Axes: N outputs, K inputs, U units."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lithe.compress.calibrate import Source
from lithe.compress.groups import Group
from lithe.errors import UsageError


def reader(group: Group) -> str:
    """The site that reads what a group's units give: down_proj of channels, o_proj of heads."""
    return group.site({"channel": "down_proj", "head": "o_proj"}[group.unit])


def by_unit(group: Group, source: Source, site: str, value_NK: Tensor) -> Tensor:
    """The sum [U] over all of a site's values that belong to each unit."""
    if group.unit in ("half", "layer"):
        return value_NK.sum().reshape(1)
    leaf = site.rpartition(".")[2]
    return fold(group, source, value_NK.sum(0 if leaf in ("down_proj", "o_proj") else 1), leaf)


def fold(group: Group, source: Source, value: Tensor, leaf: str = "") -> Tensor:
    """The sum [U] of values by lane: channels, or dimensions of heads, all query heads of a key-value head together."""
    if group.unit == "channel":
        return value
    if group.unit != "head":
        raise UsageError(f"values of lanes are gathered by channels or heads, not {group.unit}")
    return value.view(group.units, -1).sum(1)


def lanes_each(group: Group, source: Source) -> int:
    """Inputs of the reading site that belong to one unit."""
    module: Any = source.model.get_submodule(reader(group))
    return module.in_features // group.units
