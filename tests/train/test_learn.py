"""Learning from a target: its signals, runs that resume, and folders that are not trusted."""

import json
import os
import shutil
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.errors import FormatError, LitheError, UnsupportedError, UsageError
from lithe.train import fitted
from lithe.train.learn import Lesson, learn
from lithe.train.loop import Interrupted
from lithe.train.teacher import Teacher, Windows

OWN = registry.find(str(Path(__file__).with_name("own_heads.py")))
IDS = np.random.default_rng(0).integers(0, 32, 2000)
LESSON = Lesson(steps=6, rows=4, length=16, warmup=2)


def knobs(**values):
    return OWN.knobs(**values)


def windows(**changes):
    return Windows(**{"ids": IDS, "rows": 4, "length": 16, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("fit") / "heads"
    learn(OWN, knobs(), small_model(), IDS, LESSON, folder=made, quiet=True)
    return made


def load(folder, target=None, **values):
    return fitted.load("own_heads", knobs(heads=str(folder), **values), target or small_model(), OWN.module.Heads)


def test_rows_come_once_an_epoch_and_those_held_back_never():
    made = windows(prefix=(1,))
    assert made.count == 2000 // 15
    learned = made.count - len(made.held)
    met = [n for step in range(learned) for n in made(step)][: 3 * learned]  # three epochs of four rows a step
    assert all(sorted(met[e * learned : (e + 1) * learned]) == list(range(learned)) for e in range(3))
    assert made.held == list(range(learned, made.count))
    assert made.ids_BT([2]).tolist() == [[1, *IDS[30:45].tolist()]]
    assert made(5) == windows(prefix=(1,))(5) != windows(prefix=(1,), seed=1)(5)


def test_the_teacher_tells_what_was_asked_and_nothing_unknown():
    model = small_model()
    batch = Teacher(model, windows(), ("tap:final", "tap:0", "logits"))(0)
    out = model(batch["ids_BT"], taps=("final", 0), logits="all")
    assert torch.allclose(batch["tap:0"], out.taps[0]) and torch.allclose(batch["logits"], out.logits)
    assert not batch["logits"].requires_grad
    for word in ("tap:2", "tap:-1", "gradients"):
        with pytest.raises(UsageError, match="no signal"):
            Teacher(model, windows(), (word,))
    with pytest.raises(UsageError, match="outside the vocabulary"):
        Teacher(model, windows(ids=IDS + 9), ())(0)
    with pytest.raises(FormatError, match="too few"):
        windows(ids=IDS[:20])


def test_kept_states_are_read_instead_of_made_again(tmp_path):
    made = Teacher(small_model(), windows(), ("tap:final",), keep=tmp_path)
    first = made.batch([3, 5])["tap:final"]
    made.model = small_model(seed=1)  # another target would say something else
    again = made.batch([3, 5])["tap:final"]
    assert torch.equal(again, first.bfloat16().float())
    assert not torch.allclose(made.batch([3, 6])["tap:final"][0].float(), again[0], atol=0.1)
    with pytest.raises(UsageError, match="other rows"):
        Teacher(small_model(), windows(length=32), ("tap:final",), keep=tmp_path)


def test_states_that_one_fit_left_serve_another(tmp_path):
    states, rows = tmp_path / "states", [3, 5]
    first = Teacher(small_model(), windows(), ("tap:final",), keep=states).batch(rows)["tap:final"]
    wider = Teacher(small_model(), windows(), ("tap:final", "tap:0"), keep=states)
    assert wider.store.read(rows) is None  # the other tap was never kept
    wider.batch(rows)
    other = Teacher(small_model(seed=1), windows(), ("tap:0", "tap:final"), keep=states)
    assert torch.equal(other.batch(rows)["tap:final"], first.bfloat16().float())
    made = learn(OWN, knobs(), small_model(), IDS, LESSON, folder=tmp_path / "heads", states=states, quiet=True)
    assert made.rates and (states / "final.bin").is_file()  # a fit's own are deleted, these stay


def test_a_fit_that_was_stopped_goes_on_to_the_same_weights(tmp_path, folder, monkeypatch):
    batch = Teacher.batch

    def stopping(self, numbers):
        if self.windows(3) == numbers and not list(tmp_path.rglob("step-*")):
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, numbers)

    monkeypatch.setattr(Teacher, "batch", stopping)
    again = tmp_path / "heads"
    with pytest.raises(Interrupted):
        learn(OWN, knobs(), small_model(), IDS, LESSON, folder=again, quiet=True)
    with pytest.raises(FormatError, match="has not ended"):
        load(again)
    with pytest.raises(UsageError, match="another knobs, lesson, target"):
        learn(OWN, knobs(rate=0.1), small_model(seed=1), IDS, Lesson(steps=7), folder=again, quiet=True)
    learn(OWN, knobs(), small_model(), IDS, LESSON, folder=again, quiet=True)
    assert torch.equal(load(again).module.linear.weight, load(folder).module.linear.weight)
    assert {path.name for path in again.iterdir()} == {"fit.json", "fitted.json", "fitted.safetensors", "log.jsonl"}
    with pytest.raises(UsageError, match="fitted weights already"):
        learn(OWN, knobs(), small_model(), IDS, LESSON, folder=again, quiet=True)


def test_the_folder_says_what_it_holds_and_for_whom(folder):
    notes = fitted.read_notes(folder)
    assert notes["method"] == "own_heads" and notes["training"]["steps"] == 6 and len(notes["rates"]) == 1
    assert load(folder).rates == notes["rates"] and 0 < notes["rates"][0][0] < 0.5
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 6
    with pytest.raises(UnsupportedError, match="fitted to another model"):
        load(folder, small_model(seed=1))
    with pytest.raises(UnsupportedError, match="holds weights of own_heads, not of other"):
        fitted.load("other", knobs(heads=str(folder)), small_model(), OWN.module.Heads)
    with pytest.raises(UnsupportedError, match="wide=False, not True"):
        load(folder, wide=True)
    with pytest.raises(UsageError, match="no folder"):
        load(folder / "nowhere")
    with pytest.raises(UsageError, match="lithe fit MODEL --method own_heads"):
        load("")
    with pytest.raises(UsageError, match="leave it out"):
        learn(OWN, knobs(heads="fresh"), small_model(), IDS, LESSON)


BROKEN = [{"version": 2}, {"version": None}, {"method": 3}, {"target": None}, {"knobs": []}, {"knobs": {"wide": 1}},
          {"knobs": {}}, {"rates": [[2]]}, {"rates": [[]]}, {"rates": [[True]]}, {"rates": [[0.5]] * 65}, {"rates": "high"},
          {"rates": [["a"]]}, {"knobs": {"wide": True}}]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_notes_that_cannot_be_are_told(folder, tmp_path, change):
    bad = shutil.copytree(folder, tmp_path / "bad")
    notes = json.loads((bad / fitted.NOTES).read_text()) | change
    (bad / fitted.NOTES).write_text(json.dumps(notes))
    with pytest.raises(FormatError):
        load(bad)


def test_no_damage_to_a_folder_is_more_than_an_error(folder, tmp_path):
    """Bytes flipped, cut off and put in: each is told, or does no harm."""
    dice, told = Random(0), 0
    for round_ in range(120):
        bad = shutil.copytree(folder, tmp_path / str(round_))
        path = bad / dice.choice((fitted.NOTES, fitted.WEIGHTS))
        data = bytearray(path.read_bytes())
        at = dice.randrange(min(len(data), 700))
        match dice.randrange(3):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                del data[at:]
            case _:
                data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
        path.write_bytes(data)
        try:
            load(bad)
        except LitheError:
            told += 1
    assert told > 80


def test_weights_that_are_no_numbers_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    bad = shutil.copytree(folder, tmp_path / "bad")
    tensors = load_file(bad / fitted.WEIGHTS)
    tensors["linear.weight"][0, 0] = float("nan")
    save_file(tensors, bad / fitted.WEIGHTS)
    with pytest.raises(FormatError, match="no finite number"):
        load(bad)
    save_file({"linear.weight": torch.zeros(3, 3)}, bad / fitted.WEIGHTS)
    with pytest.raises(FormatError, match="not floats"):
        load(bad)
    (bad / fitted.WEIGHTS).unlink()
    with pytest.raises(FormatError, match=r"holds no fitted\.safetensors"):
        load(bad)


def test_eight_bits_a_weight_are_read_back_within_a_step(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    size = fitted.shrink(folder, tmp_path / "small")
    was, small = load(folder).module.linear.weight, load(tmp_path / "small").module.linear.weight
    assert size == was.numel() + 4 * len(was)
    step = was.abs().amax(1, keepdim=True) / 127
    assert (was - small).abs().max() > 0 and ((was - small).abs() <= 0.501 * step).all()
    tensors = load_file(tmp_path / "small" / fitted.WEIGHTS)
    save_file(tensors | {"linear.weight.scale": torch.ones(3)}, tmp_path / "small" / fitted.WEIGHTS)
    with pytest.raises(FormatError, match=r"linear\.weight\.scale is F32"):
        load(tmp_path / "small")
    save_file({"linear.weight": tensors["linear.weight"]}, tmp_path / "small" / fitted.WEIGHTS)
    with pytest.raises(FormatError, match=r"linear\.weight is I8"):
        load(tmp_path / "small")
