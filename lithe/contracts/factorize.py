"""Methods that put a product of thinner matrices in the place of a weight."""

from __future__ import annotations

from lithe.contracts import compressing as shared
from lithe.registry import Entry

BUDGETS = ["rank=5", "ratio=0.5", "ratio=0.7,sites=mlp.*"]


def check_verbs(entry: Entry) -> None:
    """Changes are of their group, the same when asked again, and nothing else moves."""
    shared.check_changes(entry, BUDGETS[0])


def check_meets_budget(entry: Entry) -> None:
    """The matrices have the bytes that the plan says."""
    shared.check_budget(entry, BUDGETS)


def check_level_zero_is_identity(entry: Entry) -> None:
    """Where nothing is to go, nothing changes."""
    shared.check_identity(entry, ["ratio=0"])


def check_masked_equals_cut(entry: Entry) -> None:
    """Two matrices compute what their product did, and load bit for bit."""
    shared.check_cut(entry, BUDGETS)


def check_touches_only(entry: Entry) -> None:
    """Sites that were not asked for keep their weights."""
    shared.check_only(entry, "rank=5,sites=down_proj")
