"""Every constraint on the shelf keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import constrain

ENTRIES = registry.entries("sampling", "constrain")
CASES = [(entry, promise) for entry in ENTRIES for promise in ("verbs", *entry.card.promises)]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(constrain, f"check_{promise}")(entry)
