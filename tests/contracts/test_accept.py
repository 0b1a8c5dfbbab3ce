"""Every acceptance rule on the shelf keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import accept

RULES = registry.entries("decode", "accept")
CASES = [(entry, promise) for entry in RULES for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(accept, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", RULES, ids=lambda entry: entry.name)
def test_verbs(entry):
    accept.check_verbs(entry)
