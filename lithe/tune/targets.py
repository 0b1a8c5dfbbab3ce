"""Sites by their own names, whatever stands in their place now, and the linear layers that a method may change."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from lithe.errors import UsageError
from lithe.model import names
from lithe.model.adapted import Host
from lithe.model.site import Site
from lithe.registry import near

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # the linear layers of a block


def place(model: nn.Module, name: str) -> Site:
    """The site that a model without adapters calls `name`. Raises UsageError where there is none."""
    module, path = model, ""
    for part in name.split("."):
        if isinstance(module, Host):
            module, path = module.base, f"{path}.base"
        module = getattr(module, part, None)  # type: ignore[assignment]
        path = f"{path}.{part}" if path else part
        if not isinstance(module, nn.Module):
            raise UsageError(f"this model has no module {name!r}")
    return Site(path, model)  # type: ignore[arg-type]


def plain_module(model: nn.Module, name: str) -> Any:
    """What stands at a site below all adapters."""
    module = place(model, name).module
    return module.base if isinstance(module, Host) else module


def linears(model: nn.Module, targets: Iterable[str] = LINEARS) -> dict[str, Any]:
    """The blocks' linear layers that `targets` names, in order: by the last part of their name, or by a pattern of all of it.

    Raises UsageError for a target that names nothing.
    """
    blocks = ((name, module) for name, module in _plain(model, "") if name.startswith("layers."))
    every = {name: module for name, module in blocks if hasattr(module, "in_features")}
    found: dict[str, Any] = {}
    for target in targets:
        hits = [name for name in every if name.rpartition(".")[2] == target or fnmatch.fnmatchcase(name, target)]
        if not hits:
            raise UsageError(f"no linear layer of this model's blocks is a {target!r}"
                             f"{near(target, {name.rpartition('.')[2] for name in every})}")
        found |= dict.fromkeys(hits)
    return {name: every[name] for name in every if name in found}


def checkpoint_names(model: Any) -> dict[str, list[str]]:
    """A checkpoint's names of the blocks' linear layers, each with the sites whose outputs lie in it, in order."""
    table = names.layout([f"{site}.weight" for site in linears(model)], model.config.family)
    return {name.removesuffix(".weight"): [site.removesuffix(".weight") for site in sites] for name, sites in table.items()}


def _plain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, Host):
        module = module.base  # type: ignore[assignment]
    yield name, module
    for part, child in module.named_children():
        yield from _plain(child, f"{name}.{part}" if name else part)
