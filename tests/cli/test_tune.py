"""`lithe tune`: data in, an ordinary folder out; interrupted runs go on; what cannot be is told before anything is trained."""

import json
import os
import shutil
import signal

import pytest
import torch

from lithe.cli import run
from lithe.errors import UnsupportedError
from lithe.model.checkpoint import load
from lithe.model.load import load as open_model
from lithe.train.feed import Feed
from tests.cli.folders import spoken


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"{n} ", "completion": "xyz", "id": n} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "valid.jsonl").write_text('{"prompt": "99 ", "completion": "xyz"}\n')
    return tmp_path / "data.jsonl"


@pytest.fixture
def tune(tmp_path, data, capsys):
    """Run `lithe tune --json`: the exit code, the result, and what was said on stderr."""

    def go(*words, out="out", model=None, file=data):
        code = run(["tune", str(model or spoken()), "--data", str(file), "-o", str(tmp_path / out), "--batch-tokens", "60",
                    "--lr", "1e-2", "--json", *words])
        told = capsys.readouterr()
        return code, json.loads(told.out) if told.out else None, told.err

    return go


def weights(folder):
    return torch.cat([w.detach().flatten() for w in load(folder).parameters()])


def test_all_weights_are_tuned_into_an_ordinary_folder(tune, tmp_path, capsys):
    code, told, _ = tune("--epochs", "2", "--valid", str(tmp_path / "valid.jsonl"), "--log-every", "1")
    assert code == 0
    assert told["valid_loss"] < told["valid_loss_before"] / 2
    assert told["bytes"]["gradients"] == told["bytes"]["weights"] == 4 * load(spoken()).size
    assert told["bytes"]["optimizer"] > 2 * told["bytes"]["weights"] and told["bytes"]["activations"] > 0
    receipt = json.loads((tmp_path / "out" / "lithe.json").read_text())["receipts"][-1]
    assert (receipt["verb"], receipt["method"], receipt["steps"]) == ("tune", "full", told["steps"])
    log = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").open()]
    assert [record["step"] for record in log] == list(range(told["steps"] + 1))
    assert not (tmp_path / "out.run").exists()
    assert run(["generate", str(tmp_path / "out"), "7 ", "--max-tokens", "3", "--greedy"]) in (0, 2)
    capsys.readouterr()


def test_a_finished_command_says_so_and_another_one_is_refused(tune, tmp_path):
    _, first, _ = tune("--steps", "3")
    before = weights(tmp_path / "out")
    code, again, _ = tune("--steps", "3")
    assert code == 0 and again == first
    assert torch.equal(weights(tmp_path / "out"), before)
    code, _, said = tune("--steps", "4")
    assert code == 2 and "not the result of this command" in said


@pytest.mark.parametrize("words", [(), ("--no-packing", "--method", "bitfit"), ("--checkpointing", "--method", "adalora"),
                                   ("--method", "spiel:density=0.1,every=3,look=1"), ("--method", "id3:density=0.1")])
def test_an_interrupted_command_goes_on_bit_for_bit(tune, tmp_path, monkeypatch, words):
    plain = Feed.__call__

    def interrupting(feed, step, ending=False):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(feed, step, ending)

    words = ("--steps", "5", *words)
    assert tune(*words, out="whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Feed, "__call__", interrupting)
        code, _, said = tune(*words)
    assert code == 130 and "resumes at step 3" in said
    assert not (tmp_path / "out").exists()
    code, told, _ = tune(*words)
    assert code == 0 and told["steps"] == 5
    file = "adapter_model.safetensors" if "--method" in words else "model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_kill_between_the_folder_and_its_last_file_is_mended(tune, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    copy = shutil.copyfile

    def killed(source, target, **options):
        if str(source).endswith("log.jsonl"):
            raise Killed
        return copy(source, target, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "copyfile", killed)
        tune("--steps", "2")
    assert (tmp_path / "out" / "config.json").exists()
    code, told, _ = tune("--steps", "2")
    assert code == 0 and told["steps"] == 2
    assert len(json.loads((tmp_path / "out" / "lithe.json").read_text())["receipts"]) == 1


def test_an_adapter_is_tuned_beside_the_weights(tune, tmp_path):
    from lithe.tune.rack import Rack

    code, told, _ = tune("--method", "bitfit", "--steps", "4", "--valid", str(tmp_path / "valid.jsonl"))
    assert code == 0 and told["valid_loss"] < told["valid_loss_before"]
    assert told["bytes"]["gradients"] < told["bytes"]["weights"] / 100
    training = json.loads((tmp_path / "out" / "lithe.json").read_text())["adapter"]["training"]
    assert (training["steps"], training["data"], training["rate"]) == (4, told["run"]["data"], 1e-2)
    base = open_model(spoken(), fast=False)
    rack = Rack.of(base)
    rack.load(tmp_path / "out")
    with torch.no_grad():
        ids = torch.tensor([list(b"7 x")])
        tuned = base(ids).logits
        rack.use(None)
        assert torch.equal(base(ids).logits, load(spoken())(ids).logits) and not torch.equal(base(ids).logits, tuned)


def test_what_nobody_gave_is_chosen_and_the_reason_told(tmp_path, data, capsys):
    words = ["tune", str(spoken()), "--data", str(data), "--steps", "2"]
    for name, more, said in [("a", [], "0.1 of the Step Law's"), ("b", ["--from-scratch"], "the Step Law's for"),
                             ("c", ["--method", "bitfit"], "says nothing of adapters")]:
        assert run([*words, "-o", str(tmp_path / name), *more]) == 0
        told = capsys.readouterr().err
        assert said in told and "tokens a step: the Step Law's" in told
        assert "fields not read: id (40)" in told and "40 rows (40 of prompt/completion)" in told


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--epochs", "1", "--steps", "2"], 2, "give one of them"), (["--lr", "0"], 2, "must be positive"),
    (["--method", "lorra"], 2, "did you mean lora"), (["--method", "top_k"], 2, "no tuning method"),
    (["--method", "lora", "--from-scratch"], 2, "leave --from-scratch out"), (["--context", "3"], 4, "line 1 has 6 tokens"),
    (["--autocast", "float8"], 2, "choose bfloat16"), (["--optimizer", "sgd"], 2, "choose adamw or muon"),
    (["--log-to", "nowhere"], 2, "no tracker"), (["--valid", "gone.jsonl"], 2, "no data file"),
])  # fmt: skip
def test_what_cannot_be_is_told_before_training(tune, tmp_path, words, code, said):
    found, _, told = tune("--steps", "1", *words) if "--epochs" not in words else tune(*words)
    assert (found, said in told) == (code, True), told
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_fails_and_leaves_no_folder(tune, tmp_path):
    code, _, said = tune("--steps", "9", "--lr", "1e30", "--save-every", "0")
    assert code == 1 and "at step" in said and "last good state is" in said
    assert not (tmp_path / "out").exists()


def test_a_method_that_looks_at_gradients_needs_one_process():
    from lithe.train.guide import Guide
    from lithe.train.session import Settings, train
    from lithe.train.team import Team

    class Method:
        def observe(self, parts, step):
            pass

    with pytest.raises(UnsupportedError, match="needs one process"):
        train(None, None, Settings(), context=8, guide=Guide(Method(), {}), team=Team(0, 2))
