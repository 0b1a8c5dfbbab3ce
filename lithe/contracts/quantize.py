"""Quantizers: levels and scales that the packed kinds hold."""

from __future__ import annotations

from lithe.contracts import compressing as shared
from lithe.registry import Entry

BUDGETS = [f"bits={bits},group={group}" for bits, group in ((2, 32), (4, 32), (4, -1), (8, 32))]


def check_verbs(entry: Entry) -> None:
    """Changes are of their group, the same when asked again, and nothing else moves."""
    for budget in BUDGETS[:2]:
        shared.check_changes(entry, budget)


def check_meets_budget(entry: Entry) -> None:
    """What is packed has the bytes that the plan says, scales included."""
    shared.check_budget(entry, BUDGETS[1:])


def check_level_zero_is_identity(entry: Entry) -> None:
    """Where all bytes may stay, nothing changes."""
    shared.check_identity(entry, ["bytes=1"])


def check_masked_equals_cut(entry: Entry) -> None:
    """What is packed is what the blocks behind were calibrated on, and it loads bit for bit."""
    shared.check_cut(entry, [BUDGETS[0], BUDGETS[2]])


def check_touches_only(entry: Entry) -> None:
    """Sites that were not asked for keep their weights."""
    shared.check_only(entry, "bits=4,sites=down_proj")
