"""The table of what goes together says what plans say."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tool():
    if not TOOLS.is_dir():
        pytest.skip("an installed lithe comes without its tools")
    sys.path.insert(0, str(TOOLS))
    try:
        import compatibility

        yield compatibility
    finally:
        sys.path.remove(str(TOOLS))


def test_what_runs_runs_and_what_does_not_says_why_without_names(tool):
    assert tool.tried(draft="prompt_lookup", accept="typical_acceptance") == ""
    assert tool.tried(draft="prompt_lookup", accept="rejection") == "the rule is not exact for det trees"
    assert tool.tried(draft="suffix:nodes=4", tree="dyspec:nodes=4") == (
        "the policy cannot shape the trees of the draft, which tells no law of its guesses")


def test_reasons_are_numbered_as_they_come(tool):
    notes = tool.Notes()
    assert [notes.cell(reason) for reason in ("", "a", "b", "a")] == ["+", "1", "2", "1"]
