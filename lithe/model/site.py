"""Sites: the only door for changing a model's modules."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from torch import nn

from lithe.errors import UsageError


@dataclass(frozen=True)
class Site:
    """A named place in a model that holds a module."""

    name: str
    model: nn.Module

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.name)

    def swap(self, new: nn.Module) -> nn.Module:
        """Put `new` here and give the old module back, so that undoing is one more call."""
        old = self.module
        parent, _, leaf = self.name.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, new)
        if (fast := getattr(self.model, "fast", None)) is not None:
            fast.forget()  # what it gathered of the old module
        return old


def sites(model: nn.Module, pattern: str) -> list[Site]:
    """Sites whose dotted name matches `pattern`, where * stands for one part of the name. Raises UsageError for none."""
    parts = pattern.split(".")
    found = [
        Site(name, model)
        for name, _ in model.named_modules()
        if len(name.split(".")) == len(parts) and all(map(fnmatch.fnmatchcase, name.split("."), parts))
    ]
    if not found:
        raise UsageError(f"no module of this model matches {pattern!r}")
    return found
