"""What a run survives: kills at any step, losses that are no number, changed settings; and what it saves in memory."""

import dataclasses
import json
import os
import resource
import signal

import numpy as np
import pytest
import torch

from lithe.errors import FormatError, UsageError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train import checkpoint, memory
from lithe.train.feed import Feed
from lithe.train.guide import Guide
from lithe.train.log import forget
from lithe.train.loop import Diverged, Plan, fit
from lithe.train.loss import Chunked, next_token
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.text import of_ids

SMALL = Config(vocab=64, width=16, layers=2, heads=2, kv_heads=1, ffn=32, context=32, tied=True)


@pytest.fixture(scope="module")
def feed():
    dice = np.random.default_rng(0)
    examples = of_ids((dice.integers(0, 64, n), [True] * n) for n in dice.integers(4, 30, 60))
    return Feed(examples=examples, tokens=100, context=30)


def plan(steps=8, **changes):
    return Plan(**{**dict(schedule=Cosine(steps=steps, warmup=2), optimizer=Optimizer(lr=0.01), log_every=1), **changes})


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def run(feed, folder=None, every=1e9, **changes):
    """The weights of a run whose loss draws from torch's RNG."""

    def noisy(model, batch):
        total, tokens = next_token(model, batch)
        return total * (1 + torch.rand(())), tokens

    model = Decoder(SMALL).init(0)
    torch.manual_seed(0)
    fit(model, feed, noisy, plan(save_every=every), folder=folder, quiet=True, **changes)
    return weights(model)


@pytest.mark.parametrize(("call", "every"), [(0, 0.0), (1, 0.0), (5, 0.0), (7, 0.0), (5, 1e9)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, feed, call, every):
    """SIGKILL in the middle of step `call`; with `every` huge nothing was saved and the run begins anew."""
    whole = run(feed)
    child = os.fork()
    if child == 0:
        def deadly(step, ending):
            if step == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return feed(step, ending)

        run(deadly, tmp_path, every)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (checkpoint.latest(tmp_path) is None) == (call == 0 or every > 0)
    assert torch.equal(run(feed, tmp_path), whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()]
    assert steps == list(range(1, 9))  # what was logged twice stands there once


def test_a_kill_while_saving_leaves_the_earlier_checkpoints(tmp_path, feed):
    whole = run(feed)
    child = os.fork()
    if child == 0:
        saves = []

        def torn(tensors, path):
            saves.append(path)
            if len(saves) == 6:  # the optimizer's file of the third checkpoint
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            save_file(tensors, path)

        save_file, checkpoint.save_file = checkpoint.save_file, torn
        run(feed, tmp_path, every=0.0)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == ["step-00000001", "step-00000002"]
    assert torch.equal(run(feed, tmp_path), whole)
    assert not list(tmp_path.glob(".writing-*"))


def test_a_full_disk_is_told_and_the_run_goes_on_from_the_last_whole_checkpoint(feed, tmp_path):
    whole, before = run(feed), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"step-00000001: .*File too large"):
            run(feed, tmp_path, every=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("step-*")) and not list(tmp_path.glob(".writing-*"))
    assert torch.equal(run(feed, tmp_path), whole)


def test_a_damaged_checkpoint_is_told(tmp_path, feed):
    run(feed, tmp_path)
    file = checkpoint.latest(tmp_path) / checkpoint.OPTIMIZER
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"delete .*step-00000008 to go on"):
        run(feed, tmp_path)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path, feed, where):
    poison = []

    def spoiled(step, ending):
        poison[:] = [step == 4]
        return feed(step, ending)

    def poisoned(model, batch):
        total, tokens = next_token(model, batch)
        if poison[0]:
            total = total * float("nan") if where == "loss" else total + (model.norm.weight * 0.0).sqrt().sum()
        return total, tokens

    model = Decoder(SMALL).init(0)
    with pytest.raises(Diverged, match=f"the {where} is (nan|inf) at step 5.*last good state is .*step-00000004"):
        fit(model, spoiled, poisoned, plan(save_every=0.0), folder=tmp_path, quiet=True)
    good = Decoder(SMALL)
    checkpoint.load_weights(checkpoint.latest(tmp_path), good)
    assert torch.equal(weights(good), weights(model))
    assert weights(good).isfinite().all()


def test_a_folder_of_another_run_is_refused(tmp_path, feed):
    run(feed, tmp_path, identity={"lr": 1, "data": "a"})
    with pytest.raises(UsageError, match="a run with another data: take another folder"):
        run(feed, tmp_path, identity={"lr": 1, "data": "b"})


def test_checkpointing_gives_the_same_gradient_with_less_memory(feed):
    config = dataclasses.replace(SMALL, layers=6)
    found = []
    for recompute in (False, True):
        model = Decoder(config).init(0).double()
        model.recompute = recompute
        total = next_token(model, feed(0)[0])[0]
        total.backward()
        bytes_kept = memory.kept(lambda m=model: next_token(m, feed(0)[0])[0], model)
        found.append((total.item(), torch.cat([w.grad.flatten() for w in model.parameters()]), bytes_kept))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert found[1][2] < found[0][2] / 2


def test_the_chunked_loss_never_holds_all_logits(feed):
    model = Decoder(dataclasses.replace(SMALL, vocab=4096)).init(0)
    batch = feed(0)[0]
    logits = batch["ids_BT"].numel() * 4096 * 4
    whole, parts = (memory.kept(lambda loss=loss: loss(model, batch)[0], model) for loss in (next_token, Chunked(rows=8)))
    assert whole > logits > parts


def test_bytes_are_those_of_the_tensors(feed):
    model = Decoder(SMALL).init(0)
    model.layers[0].requires_grad_(False)
    size = sum(w.numel() for w in model.parameters())
    trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad])
    next_token(model, feed(0)[0])[0].backward()
    optimizer.step()
    found = memory.report(model, [optimizer])
    steps = 4 * len(optimizer.state)
    assert found == {"weights": 4 * size, "trainable": 4 * trained, "gradients": 4 * trained,
                     "optimizer": 8 * trained + steps}


def test_a_method_has_its_word_and_resumes_with_what_it_kept(tmp_path, feed):
    class Method:
        def __init__(self):
            self.seen, self.told = torch.zeros(1), []

        def penalty(self, parts):
            return 1e-3 * sum(w.square().sum() for w in parts.values())

        def observe(self, parts, step):
            self.told.append(("observe", step, all(w.grad is not None for w in parts.values())))

        def update(self, parts, step, optimizers):
            self.told.append(("update", step, len(optimizers)))
            self.seen += 1

        def state(self):
            return {"seen": self.seen}

        def restore(self, state):
            self.seen = state["seen"]

    def go(steps, folder, method):
        model = Decoder(SMALL).init(0)
        guide = Guide(method, dict(model.layers.named_parameters()))
        fit(model, feed, next_token, plan(steps), folder=folder, quiet=True, guide=guide)
        return weights(model)

    first, second = Method(), Method()
    go(3, tmp_path, first)
    assert first.told == [(verb, step, 1) for step in (1, 2, 3) for verb in ("observe", "update")]
    go(5, tmp_path, second)
    assert second.seen == 5 and [step for _, step, _ in second.told] == [4, 4, 5, 5]
    assert not torch.equal(go(3, None, Method()), go(3, None, None))  # the penalty has an effect


def test_a_log_cut_short_is_mended(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    forget(tmp_path / "log.jsonl", 2)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
