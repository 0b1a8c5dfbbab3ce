"""Several processes sharing one model are one run: the same losses, and checkpoints that any number can go on from."""

import json
import os
import shutil
import socket
import traceback

import pytest
import torch
from safetensors.torch import load_file

from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.train import checkpoint
from lithe.train.loop import Plan, fit
from lithe.train.loss import next_token
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine, Wsd
from lithe.train.team import Team, join
from tests.train.together import SMALL, STEPS, train


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of a run by two processes, as torchrun would start them."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    import torch.distributed.fsdp  # noqa: F401 (once for both)

    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
            code = 1
            try:
                losses = train(folder / "run")
                if losses:  # the first process alone is told
                    (folder / "losses.json").write_text(json.dumps(losses))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    return folder


def test_two_processes_have_the_loss_curve_of_one(pair, tmp_path):
    alone = train(tmp_path / "run")
    assert len(alone) == STEPS
    assert json.loads((pair / "losses.json").read_text()) == pytest.approx(alone, rel=1e-10)
    ours, theirs = (load_file(checkpoint.latest(place / "run") / checkpoint.WEIGHTS) for place in (tmp_path, pair))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-8, atol=1e-10)


def test_one_process_goes_on_where_two_stopped(pair, tmp_path):
    shutil.copytree(pair / "run", tmp_path / "run")
    shutil.rmtree(checkpoint.latest(tmp_path / "run"))
    assert checkpoint.latest(tmp_path / "run").name == f"step-{STEPS - 1:08d}"
    last = json.loads((pair / "losses.json").read_text())[-1:]
    assert train(tmp_path / "run") == pytest.approx(last, rel=1e-10)
    ours, theirs = (load_file(checkpoint.latest(place / "run") / checkpoint.WEIGHTS) for place in (tmp_path, pair))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-8, atol=1e-10)


def test_what_several_processes_cannot_do_is_told(monkeypatch, tmp_path):
    with pytest.raises(UnsupportedError, match="cannot be timed"):
        fit(Decoder(SMALL).init(0), lambda *_: {}, next_token, Plan(schedule=Wsd(), seconds=1), team=Team(0, 2))
    with pytest.raises(UnsupportedError, match="Muon works on whole matrices"):
        fit(Decoder(SMALL).init(0), lambda *_: {}, next_token, Plan(schedule=Cosine(steps=1), optimizer=Optimizer(name="muon")),
            team=Team(0, 2))
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="must be numbers"), join():
        pass
