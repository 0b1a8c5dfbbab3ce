"""Every objective on the shelf keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import objective

OBJECTIVES = registry.entries("tune", "objective")
CASES = [(entry, promise) for entry in OBJECTIVES for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(objective, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", OBJECTIVES, ids=lambda entry: entry.name)
def test_verbs(entry):
    objective.check_verbs(entry)
