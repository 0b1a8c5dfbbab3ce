"""Every part of the sampler keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import diffuse, distill

SHELVES = ("schedule", "refresh", "unmask", "revise", "stop", "route")
PARTS = [entry for shelf in SHELVES for entry in registry.entries("diffuse", shelf)]
CASES = [(entry, promise) for entry in PARTS for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(diffuse, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", PARTS, ids=lambda entry: entry.name)
def test_verbs(entry):
    diffuse.check_verbs(entry)


@pytest.mark.parametrize("entry", registry.entries("diffuse", "distill"), ids=lambda entry: entry.name)
def test_what_trains_a_model_has_batches_and_a_loss(entry):
    distill.check_verbs(entry)
