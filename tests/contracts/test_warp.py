"""Every warp on the shelf keeps what its card promises, and leaves other rows alone."""

import pytest

from lithe import registry
from lithe.contracts import warp

WARPS = registry.entries("sampling", "warp")
CASES = [(entry, promise) for entry in WARPS for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(warp, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", WARPS, ids=lambda entry: entry.name)
def test_verbs(entry):
    warp.check_verbs(entry)
