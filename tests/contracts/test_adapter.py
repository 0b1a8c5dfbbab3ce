"""Every adapter on the shelf keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import adapter

ADAPTERS = [*registry.entries("tune", "adapter"), *registry.entries("tune", "sparse")]
CASES = [(entry, promise) for entry in ADAPTERS for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(adapter, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", ADAPTERS, ids=lambda entry: entry.name)
def test_verbs(entry):
    adapter.check_verbs(entry)
