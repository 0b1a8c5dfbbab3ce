"""What the shelves of compress share: a small model with a calibration text, steps that name a method, and their stages."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lithe.compress import calibrate, run
from lithe.compress.calibrate import Calibration
from lithe.compress.change import Change
from lithe.compress.groups import CUT_UNITS, Group, known as known_units
from lithe.compress.run import Stage, compress
from lithe.compress.step import Step, parse
from lithe.compress.surgery import copied
from lithe.contracts.small import small_model
from lithe.model import checkpoint
from lithe.model.decoder import ALL, Decoder
from lithe.registry import Entry, entries

IDS = torch.arange(48).remainder(31).view(2, 24)
RATIOS = (0.25, 0.4, 0.6)


@cache
def text() -> Calibration:
    """512 tokens of the small model's vocabulary, some far likelier than others."""
    dice = torch.Generator().manual_seed(3)
    return calibrate.of_ids(torch.multinomial(torch.linspace(0.1, 2, 32).square(), 512, True, generator=dice), length=32)


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(IDS, logits=ALL).scores


def stage(entry: Entry, budget: str, model: Decoder | None = None) -> Stage:
    """A step of this method on a copy of the small model, not yet run."""
    return Stage(copied(model or small_model()), step(entry, budget), text(), 0, lambda *_: None, None, 0, 8)


def step(entry: Entry, budget: str) -> Step:
    """A method with a budget, and beside one that says `scored` an importance: its own if its paper has one, else the first."""
    head = entry.reference if entry.card.shelf else f"{entry.shelf}={entry.reference}"
    if not getattr(entry.module.Method, "scored", False):
        return parse(f"{head}:{budget}")
    known = [other for other in entries("compress", "importance") if {*units(entry)} <= {*known_units(units(other))}]
    return parse(f"{head}:{budget} + importance={next((o for o in known if o.name == entry.name), known[0]).reference}")


def units(entry: Entry) -> tuple[str, ...]:
    return tuple(entry.module.Method(entry.knobs()).units)


def check_budget(entry: Entry, budgets: list[str]) -> None:
    """The plan's cost is the budget or less by under one step, and what is built costs what the plan says."""
    for budget in budgets:
        made = stage(entry, budget)
        found = made.allocate()
        assert found.cost <= found.budget * (1 + 1e-9), f"{budget}: {found.cost} bytes where {found.budget} were allowed"
        steps = [b.cost - a.cost for options in made.options.values() for a, b in pairwise(options)]
        assert not steps or found.budget - found.cost < max(steps), f"{budget}: {found.budget - found.cost} bytes are left over"
        over = built_bytes(made, made.apply(found)) - found.cost
        assert -_rounding(made) <= over <= 1e-6 * found.full, f"{budget}: built, it takes {over:+,.0f} bytes beside the plan"


def _rounding(made: Stage) -> float:
    """Bytes that whole entries a row may cost: one a row. Units and bits are whole anyway."""
    rows = sum(made.work.get_submodule(group.sites[0]).out_features for group in made.groups)  # type: ignore[misc]
    return 8 * rows if made.step.unit == "entry" else 1e-6 * made.problem.full


def built_bytes(made: Stage, model: Decoder) -> float:
    """Bytes of the groups in a model: what is stored, and of entries those that are not zero."""
    sites = {site for group in made.groups for site in group.sites}
    if made.step.unit in CUT_UNITS:
        sizes = (module.in_features * module.out_features for module in linears(model).values())
        others = sum(m.in_features * m.out_features for name, m in linears(made.work).items() if name not in sites)
        return 8 * (sum(sizes) - others)
    found: Any = {site: model.get_submodule(site) for site in sites}
    if made.step.unit == "entry":
        return 8 * sum(int(module.weight.count_nonzero()) for module in found.values())
    return sum(t.numel() * t.element_size() for module in found.values()
               for name, t in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items() if "bias" not in name)


def linears(model: Decoder) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules()
            if hasattr(module, "in_features") and name.startswith("layers.")}


def check_identity(entry: Entry, budgets: list[str]) -> None:
    """A budget that takes nothing changes no bit of the logits."""
    for budget in budgets:
        found = compress(small_model(), [step(entry, budget).exact], text())
        assert torch.equal(logits(found.model), logits(small_model())), f"{budget} changes the model"


def check_cut(entry: Entry, budgets: list[str]) -> None:
    """The model in the shapes of before and the one that is stored compute the same, and what is saved loads bit for bit."""
    for budget in budgets:
        made = stage(entry, budget)
        levels = made.allocate().levels
        done = made.masked(levels)
        masked = copied(made.work)
        stored = run.finished(made.work, done)
        if made.step.unit == "bits":  # kernels round what packed weights read, so the weights are compared
            for site in (site for group in made.groups for site in group.sites):
                wanted, have = (model.get_submodule(site).weight for model in (masked, stored))
                assert torch.allclose(wanted.float(), have.float(), rtol=1e-6, atol=1e-9), f"{site} is stored as another weight"  # type: ignore
        else:
            worst = (logits(masked) - logits(stored)).abs().max()
            assert worst <= 1e-9, f"{budget}: cut, the logits move by {worst:.1e}"
        with TemporaryDirectory() as place:
            checkpoint.save(stored, Path(place) / "m", dtype=None if made.step.unit == "bits" else torch.float64)
            again = checkpoint.load(Path(place) / "m", dtype=torch.float64)
            assert torch.equal(logits(stored), logits(again)), f"{budget}: it loads as another model"


def check_changes(entry: Entry, budget: str) -> None:
    """`change` leaves the model and torch's dice alone, says the same twice, and speaks of its group's sites alone."""
    made = stage(entry, budget)
    levels = made.allocate().levels
    whole = getattr(made.step.act, "block", None)
    for layer, found in calibrate.blocks(made.work, text(), sorted(made.step.needs)):
        source = made.source(layer, found)
        for group in (group for group in made.groups if group.layer == layer):
            before = {name: t.clone() for name, t in made.work.state_dict().items() if isinstance(t, Tensor)}
            dice = torch.get_rng_state()
            ask = (lambda g=group, s=source: whole([g], {g.name: levels[g.name]}, s)[g.name]) if whole else (
                lambda g=group, s=source: made.step.change(g, levels[g.name], s))
            one, two = flat(ask()), flat(ask())
            assert torch.equal(dice, torch.get_rng_state()), "it draws from torch's own generator"
            same = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
            assert same, "asked again, it gives another change"
            assert all(torch.isfinite(t.float()).all() for t in one.values()), "it gives what is no number"
            assert all(torch.equal(t, made.work.state_dict()[name]) for name, t in before.items()), "it changes what it reads"
            strange = {name.rpartition("/")[2] for name in one} - {"kept", *group.sites}
            assert not strange, f"of {group.name} it speaks of {strange}"


def flat(change: Change) -> dict[str, Tensor]:
    """All tensors of a change, by names that end in their site."""
    found = {f"{kind}/{site}": t for kind in ("weights", "biases", "ranges") for site, t in getattr(change, kind).items()}
    found |= {f"packed/{site}": matrix.data for site, matrix in change.packed.items()}
    found |= {f"{kind}{i}/{site}": two[i] for kind in ("levels", "pairs") for site, two in getattr(change, kind).items()
              for i in (0, 1)}
    return found | ({} if change.kept is None else {"kept": change.kept})


def check_only(entry: Entry, budget: str) -> None:
    """Nothing but the weights of the sites asked for changes."""
    made = stage(entry, budget)
    before = {name: t.clone() for name, t in made.work.state_dict().items() if isinstance(t, Tensor)}
    groups: list[Group] = made.groups
    made.masked(made.allocate().levels)
    mine = {site for group in groups for site in group.sites}
    for name, tensor in made.work.state_dict().items():
        if isinstance(tensor, Tensor) and name.rpartition(".")[0] not in mine:
            assert torch.equal(tensor, before[name]), f"{name} changes, which no group holds"
