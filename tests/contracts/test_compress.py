"""Every method that compresses keeps what its card promises."""

from importlib import import_module

import pytest

from lithe import registry

METHODS = registry.entries("compress")
CASES = [(entry, promise) for entry in METHODS for promise in entry.card.promises]


def contract(entry):
    return import_module(f"lithe.contracts.{entry.shelf}")


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.shelf}-{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(contract(entry), f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: f"{entry.shelf}-{entry.name}")
def test_verbs(entry):
    contract(entry).check_verbs(entry)
