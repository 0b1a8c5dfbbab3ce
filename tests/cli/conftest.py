"""What the tests of the command line share."""

import pytest
import torch

from tests.cli.process import Parent


@pytest.fixture(autouse=True)
def one_thread():
    """These models are so small that more threads only wait for each other; what a test sets is undone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def process():
    """Starts `lithe` as a process of its own."""
    parent = Parent()
    yield parent.start
    parent.close()
