"""The loop: a resumed run is the uninterrupted one bit for bit, and sums over tokens make the split of a batch irrelevant."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from lithe.errors import UsageError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train import checkpoint, optim
from lithe.train.batches import IGNORED, Rows
from lithe.train.loop import Interrupted, Plan, fit
from lithe.train.loss import next_token
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine, Wsd

SMALL = Config(vocab=64, width=16, layers=2, heads=2, kv_heads=1, ffn=32, context=32, tied=True)


@pytest.fixture
def batches(tmp_path):
    np.random.default_rng(0).integers(0, 64, 5000).astype(np.uint16).tofile(tmp_path / "a.bin")
    return Rows(sources={"a": tmp_path / "a.bin"}, weights={"a": 1}, rows=4, length=16)


def plan(steps=8, **changes):
    return Plan(**{**dict(schedule=Wsd(warmup=2, decay_from=steps - 3, decay_steps=3), log_every=1), **changes})


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def noisy(model, batch):
    """A loss that draws from torch's RNG, whose state a resumed run must have too."""
    total, tokens = next_token(model, batch)
    return total * (1 + 0.1 * torch.rand(())), tokens


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, batches, name):
    settings = plan(optimizer=Optimizer(name=name, lr=0.01), accumulate=2)
    torch.manual_seed(3)
    whole = Decoder(SMALL).init(0)
    fit(whole, batches, noisy, settings, folder=tmp_path / "whole", quiet=True)

    def interrupting(step, ending=False):
        if step == 9:  # in the fifth step: its first half is lost and made again
            os.kill(os.getpid(), signal.SIGINT)
        return batches(step, ending)

    torch.manual_seed(3)
    with pytest.raises(Interrupted, match="resumes at step 5") as stopped:
        fit(Decoder(SMALL).init(0), interrupting, noisy, settings, folder=tmp_path / "part", quiet=True)
    assert stopped.value.exit_code == 130
    torch.manual_seed(99)
    resumed = Decoder(SMALL).init(1)
    at = fit(resumed, batches, noisy, settings, folder=tmp_path / "part", quiet=True)
    assert at.step == 8 and at.tokens == 8 * 2 * 64
    assert torch.equal(weights(resumed), weights(whole))
    logs = [[json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").open()] for run in ("whole", "part")]
    assert logs[0] == logs[1]


def test_the_split_of_a_batch_does_not_change_the_step(batches):
    batch = batches(0)
    batch["targets_BT"][0, 3:] = IGNORED  # rows of unlike weight: means of means would differ
    halves = [{key: value[:1] for key, value in batch.items()}, {key: value[1:] for key, value in batch.items()}]
    models = [Decoder(SMALL).init(0).double() for _ in range(2)]
    settings = plan(schedule=Cosine(steps=1), optimizer=Optimizer(lr=0.01))
    one = fit(models[0], lambda step, ending: batch, next_token, settings, quiet=True)
    two = fit(models[1], lambda step, ending: halves[step], next_token,
              plan(schedule=Cosine(steps=1), optimizer=Optimizer(lr=0.01), accumulate=2), quiet=True)
    assert one.tokens == two.tokens == 51
    assert one.loss == pytest.approx(two.loss, rel=1e-6)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-4, atol=1e-7)


def test_a_time_budget_begins_the_decay_and_ends_the_run(tmp_path, batches):
    settings = plan(schedule=Wsd(warmup=2), seconds=0.5)
    at = fit(Decoder(SMALL).init(0), batches, next_token, settings, folder=tmp_path, quiet=True)
    schedule = checkpoint.read_state(checkpoint.latest(tmp_path))["schedule"]
    assert schedule["decay_from"] + schedule["decay_steps"] == at.step
    with pytest.raises(UsageError, match="give `seconds`"):
        fit(Decoder(SMALL).init(0), batches, next_token, plan(schedule=Wsd()), quiet=True)
    with pytest.raises(UsageError, match="is for the schedule Wsd"):
        fit(Decoder(SMALL).init(0), batches, next_token, plan(schedule=Cosine(steps=3), seconds=1), quiet=True)


def test_it_learns_and_leaves_frozen_weights_alone(batches):
    model = Decoder(SMALL).init(0)
    model.embed_tokens.weight.requires_grad_(False)
    before = model.embed_tokens.weight.clone()
    settings = [plan(optimizer=Optimizer(lr=0.02), schedule=Cosine(steps=steps)) for steps in (1, 30)]
    losses = [fit(model, lambda *_: batches(0), next_token, one, quiet=True).loss for one in settings]
    assert losses[1] < losses[0] - 0.3
    assert torch.equal(model.embed_tokens.weight, before)


def test_two_checkpoints_are_kept_and_hold_what_trains(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, model, optim.build(model, Optimizer()), {"step": step})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]
    twin = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    twin[0].bias.requires_grad_(False)
    checkpoint.load_weights(checkpoint.latest(tmp_path), twin)
    assert torch.equal(twin[0].weight, model[0].weight)


def test_muon_gets_the_hidden_matrices_only():
    model = Decoder(SMALL)
    adamw, muon = optim.build(model, Optimizer(name="muon"))
    names = {id(w): name for name, w in model.named_parameters()}
    taken = {names[id(w)] for w in muon.param_groups[0]["params"]}
    assert len(taken) == 2 * 7 and all("proj" in name for name in taken)
    assert len(adamw.param_groups[0]["params"]) == len(names) - len(taken)
    with pytest.raises(UsageError, match="choose adamw or muon"):
        optim.build(model, Optimizer(name="sgd"))
