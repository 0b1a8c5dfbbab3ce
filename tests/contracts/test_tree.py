"""Every tree policy on the shelf keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import tree

POLICIES = registry.entries("decode", "tree")
CASES = [(entry, promise) for entry in POLICIES for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(tree, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", POLICIES, ids=lambda entry: entry.name)
def test_verbs(entry):
    tree.check_verbs(entry)
