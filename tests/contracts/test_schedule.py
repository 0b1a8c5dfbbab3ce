"""Every schedule on the shelf keeps what its card promises."""

import pytest

from lithe import registry
from lithe.contracts import schedule

SCHEDULES = registry.entries("serve", "schedule")
CASES = [(entry, promise) for entry in SCHEDULES for promise in entry.card.promises]


@pytest.mark.parametrize(("entry", "promise"), CASES, ids=[f"{e.name}-{p}" for e, p in CASES])
def test_promise(entry, promise):
    getattr(schedule, f"check_{promise}")(entry)


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda entry: entry.name)
def test_verbs(entry):
    schedule.check_verbs(entry)
