"""What tests share: the slow ones are asked for, and data beyond the clone comes from $LITHE_DATA."""

import os
import tempfile
from pathlib import Path

import pytest

# The models of most tests are so small that more threads only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests work out from corpora is theirs alone; worker processes inherit the folder.
os.environ.setdefault("LITHE_CACHE", tempfile.mkdtemp(prefix="lithe-cache-"))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the full forms of checks as well")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a full form: run with --slow"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of data sets that are too large or not free enough for the repository."""
    folder = os.environ.get("LITHE_DATA")
    if not folder:
        pytest.skip("$LITHE_DATA names no folder of data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"$LITHE_DATA is {folder}, which is no folder")
    return Path(folder)
