"""Every method for differences keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import delta

DELTAS = registry.entries("tune", "delta")
CASES = [(entry, promise) for entry in DELTAS for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(delta, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", DELTAS, ids=lambda entry: entry.name)
def test_verbs(entry):
    delta.check_verbs(entry)
