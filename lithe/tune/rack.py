"""The rack: the adapters of one model, in place, by request, stacked, weighed, merged and taken back.

>>> import lithe
>>> from lithe.tune.rack import Rack
>>> model = lithe.load("zoo:tiny", fast=False)
>>> rack = Rack.of(model)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lithe import registry
from lithe.errors import UnsupportedError, UsageError
from lithe.model.adapted import Choice, Mix, Part, merge, remade
from lithe.model.decoder import Decoder
from lithe.tune import folder as folders
from lithe.tune.targets import place, plain_module

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
Wish = str | Mapping[str, float] | None  # one adapter, several with their weights, or the base


@dataclass
class Adapter:
    """A named set of parts by site, and how it came to be."""

    name: str
    parts: dict[str, Part]
    receipt: dict[str, Any]
    method: Any = None  # what built it, where that was here
    hosts: dict[str, Part] = field(default_factory=dict)  # the modules that call its parts

    def parameters(self) -> Iterator[nn.Parameter]:
        for part in self.parts.values():
            yield from part.parameters()

    @property
    def size(self) -> int:
        """How many values it trains."""
        return sum(weight.numel() for weight in self.parameters())


class Rack:
    """A model's adapters. `Rack.of(model)` gives the one that it has."""

    def __init__(self, model: Decoder):
        self.model, self.choice = model, Choice()
        self.adapters: dict[str, Adapter] = {}
        self.merged: Mix = ()
        self._plain: dict[str, nn.Module] = {}  # what stood at each site that is hosted or merged
        self._made: dict[str, nn.Module] = {}  # what stands for it while something is merged

    @classmethod
    def of(cls, model: Decoder) -> Rack:
        """The model's rack, made where it has none."""
        if model.adapters is None:
            rack = cls(model)
            model.adapters, rack.choice.owner = rack.choice, rack
        return model.adapters.owner

    def make(self, spec: str, *, name: str | None = None, seed: int = 0) -> Adapter:
        """A fresh adapter as a method builds it, attached and used by default. name: the method's own unless given."""
        found = registry.parse(spec)
        if found.entry.room != "tune" or not hasattr(found.entry.module.Method, "build"):
            raise UsageError(f"{found.entry.address} builds no adapters")
        self._whole("make an adapter")
        knobs = found.knobs
        method = found.entry.module.Method(knobs, self.model)
        parts = method.build(self.model, torch.Generator().manual_seed(seed))
        receipt = {"method": found.exact, "knobs": {key: getattr(knobs, key) for key in vars(knobs)}, "seed": seed}
        return self.add(Adapter(name or found.entry.name, parts, receipt, method))

    def load(self, folder: str | Path, *, name: str | None = None, any_base: bool = False) -> Adapter:
        """Attach the adapter of a folder, PEFT's layout or lithe's, and use it by default.

        any_base: also where the folder says that it was made for other weights of the same shapes. Raises FormatError for a
        folder that is not what it claims or does not fit this model, UnsupportedError for what lithe cannot express.
        """
        self._whole("load an adapter")
        parts, receipt = folders.load(Path(folder), self.model, any_base=any_base)
        return self.add(Adapter(name or _name_of(Path(folder)), parts, receipt))

    def save(self, name: str, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write an adapter's folder. Nothing is seen under its name until all of it is written."""
        adapter = self._known(name)
        self._whole("save an adapter")  # whose receipt tells of the base
        return folders.save(adapter.parts, adapter.receipt, self.model, Path(folder), overwrite=overwrite)

    def add(self, adapter: Adapter) -> Adapter:
        """Attach an adapter and use it by default."""
        self._whole("attach an adapter")
        if not NAME.fullmatch(adapter.name):
            raise UsageError(f"{adapter.name!r:.80} cannot be an adapter's name: letters, digits, _ and - can")
        if adapter.name in self.adapters:
            raise UsageError(f"there is an adapter {adapter.name!r} already; give another name")
        for site, part in adapter.parts.items():
            hosts = part.hosts(self.model, site)
            if problem := part.problem(plain_module(self.model, site)):
                raise UsageError(f"an adapter does not fit this model at {site}: {problem}")
            if twice := adapter.hosts.keys() & set(hosts):
                raise UnsupportedError(f"two parts of one adapter stand at {min(twice)}; make them two adapters")
            adapter.hosts |= dict.fromkeys(hosts, part)
            part.to(self.model.device).train(self.model.training)
        self.adapters[adapter.name] = adapter
        self._settle(adapter)
        self.use(adapter.name)
        return adapter

    def remove(self, name: str) -> Adapter:
        """Take an adapter off; its sites are as if it had never been there."""
        self._whole("remove an adapter")
        adapter = self._known(name)
        del self.adapters[name]
        self._settle(adapter)
        if any(held == name for held, _ in self.choice.default):
            self.choice.default = ()
        return adapter

    def use(self, wish: Wish) -> None:
        """What passes get that say nothing else: an adapter, a stack with weights in its order, or None for the base."""
        self.choice.default = self._mix(wish)

    def number(self, wish: Wish) -> int:
        """The number that stands for this in `adapters_B`."""
        return self.choice.number(self._mix(wish))

    def train(self, name: str) -> Adapter:
        """Let exactly this adapter's weights require gradients: the rest of the model is frozen."""
        adapter = self._known(name)
        for weight in self.model.parameters():
            weight.requires_grad_(False)
        for weight in adapter.parameters():
            weight.requires_grad_(True)
        return adapter

    @torch.no_grad()
    def merge(self, wish: Wish) -> None:
        """Put a stack into weights of their own, in wide floats and then rounded once; the old ones are kept for `unmerge`.

        Until then its adapters cannot be asked for. Raises UnsupportedError where a part cannot be merged.
        """
        self._whole("merge")
        mix = self._mix(wish)
        names = [name for name, _ in mix]
        if not mix:
            raise UsageError("nothing to merge: name an adapter")
        made: dict[str, nn.Module] = {}
        for site in dict.fromkeys(site for name in names for site in self.adapters[name].hosts):
            levels = [(part, w) for name, w in mix if (part := self.adapters[name].hosts.get(site)) is not None]
            module = plain_module(self.model, site)
            if not hasattr(module, "weight"):
                levels[0][0].merged(torch.zeros(0, 0), None)  # which says why it cannot be
                raise UnsupportedError(f"the weight at {site} cannot be read, so nothing can be merged into it")
            made[site] = remade(module, *merge(module, levels))
        self._made, self.merged = made, mix
        for name in names:
            self._settle(self.adapters[name])
        self.choice.default = ()

    def unmerge(self) -> None:
        """Put the weights from before `merge` back, bit for bit, and its adapters beside them."""
        if not self.merged:
            raise UsageError("nothing is merged")
        mix, self.merged, self._made = self.merged, (), {}
        for name, _ in mix:
            self._settle(self.adapters[name])
        self.choice.default = mix

    def _settle(self, adapter: Adapter) -> None:
        """Put in place what its sites must hold now."""
        away = {name for name, _ in self.merged}
        here = {name: a for name, a in self.adapters.items() if name not in away}
        self.choice.weights = {name: list(a.parameters()) for name, a in here.items()}
        self.choice.leads = {name: part for name, a in here.items() for part in a.parts.values() if part.leads}
        self.choice.kept.clear()
        for site in sorted(adapter.hosts):  # outer modules come before what lies in them
            spot = place(self.model, site)
            plain = self._plain.setdefault(site, plain_module(self.model, site))
            module, parts = self._made.get(site, plain), {name: a.hosts[site] for name, a in here.items() if site in a.hosts}
            if parts:
                module = host = next(iter(parts.values())).host(module, self.choice)
                host.parts.update(parts)
                host.train(self.model.training)
            elif site not in self._made:
                del self._plain[site]
            spot.swap(module)

    def _mix(self, wish: Wish) -> Mix:
        pairs = {} if wish is None else {wish: 1.0} if isinstance(wish, str) else dict(wish)
        for name, weight in pairs.items():
            self._known(name)
            if not isinstance(weight, (int, float)) or not abs(weight) < float("inf"):
                raise UsageError(f"adapter {name!r} has weight {weight!r}, which is no number")
        if gone := [name for name in pairs if name in {held for held, _ in self.merged}]:
            raise UsageError(f"adapter {gone[0]!r} is merged into the weights: unmerge it to use it beside them")
        return tuple((name, float(weight)) for name, weight in pairs.items())

    def _known(self, name: str) -> Adapter:
        if name not in self.adapters:
            raise UsageError(f"there is no adapter {name!r}{registry.near(name, self.adapters)}")
        return self.adapters[name]

    def _whole(self, what: str) -> None:
        if self.merged:
            names = ", ".join(name for name, _ in self.merged)
            raise UsageError(f"{names} is merged into the weights: unmerge before you {what}")


def attach(model: Decoder, *adapters: str | Path) -> Rack:
    """Load adapter folders onto a model and use all of them, stacked in this order. Returns the rack that holds them."""
    rack = Rack.of(model)
    names = []
    for where in adapters:
        name = _name_of(Path(where))
        while name in rack.adapters:
            name += "-again"
        names.append(rack.load(where, name=name).name)
    rack.use(dict.fromkeys(names, 1.0))
    return rack


def _name_of(folder: Path) -> str:
    """A name made of a folder's."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", folder.resolve().name).lstrip("-_")[:40] or "adapter"

