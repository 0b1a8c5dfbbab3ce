"""Every way to share keys keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import share

WAYS = registry.entries("attention", "share")
CASES = [(entry, promise) for entry in WAYS for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(share, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", WAYS, ids=lambda entry: entry.name)
def test_verbs(entry):
    share.check_verbs(entry)
