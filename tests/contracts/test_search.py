"""What replaces the loop keeps its contract."""

import pytest

from lithe import registry
from lithe.contracts import search

METHODS = registry.entries("decode", "search")
CASES = [(entry, promise) for entry in METHODS for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(search, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_verbs(entry):
    search.check_verbs(entry)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_it_promises_nothing_about_the_output(entry):
    """What did would belong on the shelf of drafts, which are verified."""
    assert not entry.card.lossless
