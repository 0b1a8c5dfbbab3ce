"""Quantizers: levels and scales that the packed kinds hold."""

from __future__ import annotations

from lithe.contracts import compressing as shared
from lithe.registry import Entry

BUDGETS = ((2, 32), (4, 32), (4, -1), (8, 32))  # bits, and inputs that share a scale


def budgets(entry: Entry) -> list[str]:
    """Of the widths that it knows; without the first where it knows others."""
    known = getattr(entry.module.Method, "widths", (2, 4, 8))
    more = "," + ",".join(f"{k}={v}" for k, v in quick.items()) if (quick := getattr(entry.module, "QUICK", {})) else ""
    return [f"bits={bits},group={group}{more}" for bits, group in BUDGETS if bits in known]


def check_verbs(entry: Entry) -> None:
    """Changes are of their group, the same when asked again, and nothing else moves."""
    for budget in budgets(entry)[:2]:
        shared.check_changes(entry, budget)


def check_meets_budget(entry: Entry) -> None:
    """What is packed has the bytes that the plan says, scales included."""
    shared.check_budget(entry, budgets(entry))


def check_level_zero_is_identity(entry: Entry) -> None:
    """Where all bytes may stay, nothing changes."""
    shared.check_identity(entry, ["bytes=1"])


def check_masked_equals_cut(entry: Entry) -> None:
    """What is packed is what the blocks behind were calibrated on, and it loads bit for bit."""
    shared.check_cut(entry, budgets(entry)[:3:2])


def check_touches_only(entry: Entry) -> None:
    """Sites that were not asked for keep their weights."""
    shared.check_only(entry, "bits=4,sites=down_proj")
