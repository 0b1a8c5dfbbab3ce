"""Small things that the measuring tests share."""

import pytest
import torch

from lithe.bench import quiet


@pytest.fixture(autouse=True)
def one_thread():
    """Counts are what is tested here: nothing need wait for a second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def silence(monkeypatch):
    """A quiet machine, whatever else runs on it."""
    monkeypatch.setattr(quiet, "listen", lambda: quiet.Quiet(20.0, 60.0, 0.0))
