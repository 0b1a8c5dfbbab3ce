"""Methods that let weights go and may move those that stay."""

from __future__ import annotations

import torch

from lithe.compress.groups import CUT_UNITS
from lithe.compress.masking import parts
from lithe.contracts import compressing as shared
from lithe.contracts.small import small_model
from lithe.registry import Entry


def check_verbs(entry: Entry) -> None:
    """Changes are of their group, the same when asked again, and nothing else moves."""
    for unit in shared.units(entry):
        shared.check_changes(entry, f"ratio=0.5,unit={unit}")


def check_meets_budget(entry: Entry) -> None:
    """What is built has the size that the plan says, within the budget."""
    shared.check_budget(entry, [f"ratio={ratio},unit={unit}" for unit in shared.units(entry)
                                for ratio in (shared.RATIOS if unit not in ("half", "layer") else (0.5,))])


def check_level_zero_is_identity(entry: Entry) -> None:
    """Where nothing is to go, nothing changes."""
    shared.check_identity(entry, [f"ratio=0,unit={unit}" for unit in shared.units(entry)])


def check_masked_equals_cut(entry: Entry) -> None:
    """Cut, the model computes what it did masked."""
    shared.check_cut(entry, [f"ratio={0.5 if unit in ('half', 'layer') else 0.4},unit={unit}" for unit in shared.units(entry)
                             if unit in CUT_UNITS])


def check_n_of_m(entry: Entry) -> None:
    """Of every m neighbours n stay."""
    for pattern in ("2:4", "4:8"):
        n, m = parts(pattern)
        made = shared.stage(entry, f"pattern={pattern},unit=entry")
        made.masked(made.allocate().levels)
        for name, module in shared.linears(made.work).items():
            most = int((module.weight != 0).view(len(module.weight), -1, m).sum(-1).max())
            assert most <= n, f"{name}: {most} of {m} neighbours stay where {n} may"


def check_touches_only(entry: Entry) -> None:
    """It chooses what goes and moves nothing that stays."""
    for unit in shared.units(entry):
        made = shared.stage(entry, f"ratio=0.5,unit={unit}")
        made.masked(made.allocate().levels)
        for name, weight in made.work.named_parameters():
            before = small_model().get_parameter(name)
            assert torch.equal(weight[weight != 0], before[weight != 0]), f"{name} changes where it is not zero"
