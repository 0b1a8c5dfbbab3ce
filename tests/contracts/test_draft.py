"""Every draft on the shelf keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import draft

CASES = [(entry, promise) for entry in registry.entries("decode", "draft") for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(draft, f"check_{promise}")(entry)
