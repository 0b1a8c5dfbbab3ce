"""Importances: what they score, and that the least goes."""

from __future__ import annotations

import torch

from lithe.compress import calibrate
from lithe.compress.groups import CUT_UNITS
from lithe.compress.masking import parts
from lithe.contracts import compressing as shared
from lithe.contracts.small import small_model
from lithe.registry import Entry


def check_verbs(entry: Entry) -> None:
    """A finite score for each entry or unit, the same when asked again, the model as it was."""
    for unit in shared.units(entry):
        made = shared.stage(entry, f"ratio=0.4,unit={unit}")
        before = {name: tensor.clone() for name, tensor in made.work.named_parameters()}
        for layer, found in calibrate.blocks(made.work, shared.text(), sorted(made.step.needs)):
            source = made.source(layer, found)
            for group in (group for group in made.groups if group.layer == layer):
                first, again = source.score(group), source.score(group)
                shape = source.weight(group.sites[0]).shape if unit == "entry" else (group.units,)
                assert first.shape == shape, f"{unit}: scores of shape {tuple(first.shape)} where {tuple(shape)} is wanted"
                assert torch.isfinite(first).all(), f"{unit}: a score is no number"
                assert torch.equal(first, again), f"{unit}: asked again, it scores otherwise"
        assert all(torch.equal(tensor, before[name]) for name, tensor in made.work.named_parameters()), "it changes the model"


def check_meets_budget(entry: Entry) -> None:
    """Alone it takes what is asked, of every unit that it knows."""
    shared.check_budget(entry, [f"ratio={ratio},unit={unit}" for unit in shared.units(entry)
                                for ratio in (shared.RATIOS if unit not in ("half", "layer") else (0.5,))])


def check_level_zero_is_identity(entry: Entry) -> None:
    """Where nothing is to go, nothing changes."""
    shared.check_identity(entry, [f"ratio=0,unit={unit}" for unit in shared.units(entry)])


def check_masked_equals_cut(entry: Entry) -> None:
    """Cut, the model computes what it did masked."""
    budgets = [f"ratio={0.5 if unit in ('half', 'layer') else 0.4},unit={unit}" for unit in shared.units(entry)
               if unit in CUT_UNITS]
    assert budgets, "it scores nothing that can be cut"
    shared.check_cut(entry, budgets)


def check_n_of_m(entry: Entry) -> None:
    """Of every m neighbours n stay, and no other entry moves."""
    for pattern in ("2:4", "1:8", "4:8"):
        n, m = parts(pattern)
        made = shared.stage(entry, f"pattern={pattern},unit=entry")
        made.masked(made.allocate().levels)
        for name, module in shared.linears(made.work).items():
            kept = (module.weight != 0).view(len(module.weight), -1, m).sum(-1)
            assert int(kept.max()) <= n, f"{name}: {int(kept.max())} of {m} neighbours stay where {n} may"


def check_touches_only(entry: Entry) -> None:
    """What stays is as it was, to the bit."""
    for unit in shared.units(entry):
        made = shared.stage(entry, f"ratio=0.5,unit={unit}")
        made.masked(made.allocate().levels)
        for name, weight in made.work.named_parameters():
            before = small_model().get_parameter(name)
            assert torch.equal(weight[weight != 0], before[weight != 0]), f"{unit}: {name} changes where it is not zero"
        shared.check_only(entry, f"ratio=0.5,unit={unit}")
