"""`lithe compress` from end to end: plans, folders that generate with every draft, and what it refuses."""

import json
import random
import resource

import pytest

import lithe
from lithe.cli import run
from lithe.compress import calibrate
from lithe.compress.allocation import Allocation
from lithe.compress.fitness import Fitness
from tests.bench.folder import LETTERS, small_text_folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(random.Random(0).choices(LETTERS, k=600)))
    return path


@pytest.fixture
def go(capsys, words):
    def call(*more, calibrated=True):
        given = ["--calibration", str(words)] if calibrated else []
        code = run(["compress", str(small_text_folder()), *map(str, more), *given])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_a_dry_run_tells_the_plan_and_the_folder_then_has_its_size(go, tmp_path):
    asked = ("--method", "wanda_sp:ratio=0.4,unit=channel", "--json")
    code, out, err = go(*asked, "--dry-run")
    assert code == 0, err
    planned = json.loads(out)
    plan = Allocation.of(planned["allocations"][0])
    assert plan.cost <= plan.budget and set(plan.levels) == {"layers.0.mlp", "layers.1.mlp"} and not list(tmp_path.iterdir())
    assert planned["predicted"][0]["kl"] > 0 and planned["faster"] == pytest.approx(
        planned["bytes_before"] / planned["bytes"], abs=0.3) and planned["faster"] > 1
    code, out, err = go(*asked, "-o", tmp_path / "out")
    assert code == 0, err
    told = json.loads(out)
    assert 0 <= told["bytes"] - planned["bytes"] < 3000  # names and shapes in the file's header
    assert told["bytes_before"] > told["bytes"] and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "lithe.json").read_text())["receipts"][-1]["allocation"]["levels"] == plan.levels


@pytest.mark.parametrize("methods", [["magnitude_pruning:unit=head,ratio=0.5 + ranked", "rtn:bits=4"], ["svd:ratio=0.5"],
                                     ["magnitude_pruning:unit=half,ratio=0.4"]])
def test_what_it_writes_generates_with_drafts_as_without(go, tmp_path, methods):
    code, _, err = go(*(word for method in methods for word in ("--method", method)), "-o", tmp_path / "out")
    assert code == 0, err
    model = lithe.load(tmp_path / "out")
    texts = [[step.tokens for step in lithe.generate(model, "the cat", max_tokens=20, **more)]
             for more in ({}, {"draft": "prompt_lookup"})]
    assert [t for step in texts[0] for t in step] == [t for step in texts[1] for t in step]


@pytest.mark.parametrize(("code", "told", "words"), [
    (2, "say which folder", ["--method", "magnitude_pruning:ratio=0.5"]),
    (2, "must say once how much", ["--method", "magnitude_pruning", "-o", "OUT"]),
    (3, "save no bytes", ["--method", "magnitude_pruning:bytes=0.5", "-o", "OUT"]),
    (2, "leaves alone takes more", ["--method", "magnitude_pruning:unit=width,bytes=0.01", "-o", "OUT"]),
    (2, "there is no data file", ["--method", "wanda:ratio=0.5", "-o", "OUT", "--calibration", "nowhere.jsonl"]),
    (2, "needs a calibration text", ["--method", "wanda:ratio=0.5", "-o", "OUT"])])
def test_what_is_refused_leaves_nothing_behind(go, tmp_path, code, told, words):
    found, _, err = go(*(str(tmp_path / "out") if word == "OUT" else word for word in words), calibrated=False)
    assert found == code and told in err and not list(tmp_path.iterdir())


def test_the_face_does_what_the_verb_does(go, tmp_path, words):
    step = "wanda_sp:ratio=0.4,unit=channel"
    found = lithe.compress(small_text_folder(), step, calibration=words, out=tmp_path / "here")
    assert go("--method", step, "-o", tmp_path / "there")[0] == 0
    assert found.report["out"] == str(tmp_path / "here") and found.allocations[0].unit == "channel"
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == (tmp_path / "there" / "model.safetensors").read_bytes()


def test_a_dry_run_foretells_the_loss_of_the_model_it_would_make(go, tmp_path, words):
    """Nothing of one step's changes depends on the block before where inputs are not read."""
    step, dense = "magnitude_pruning:ratio=0.5", lithe.load(small_text_folder(), fast=False)
    code, out, err = go("--method", step, "--method", "recover=norm_tuning:steps=2", "--tokens", "400", "--dry-run", "--json")
    assert code == 0, err
    text = calibrate.read(words, dense, length=512, tokens=400)
    made = lithe.compress(dense, step, calibration=text).model
    told = json.loads(out)["predicted"]
    assert told[0]["kl"] == pytest.approx(Fitness(dense, text)(made, 2048), rel=1e-3) and told[1]["kl"] is None


def test_a_dry_run_of_a_chain_plans_for_what_earlier_steps_leave(go, tmp_path):
    asked = ("--method", "magnitude_pruning:ratio=0.4,unit=width", "--method", "rtn:bits=4", "--json")
    planned, told = (json.loads(go(*asked, *more)[1]) for more in (["--dry-run"], ["-o", tmp_path / "out"]))
    assert planned["allocations"] == told["allocations"]
    assert 0 <= told["bytes"] - planned["bytes"] < 0.05 * planned["bytes_before"]  # names and shapes in the file's header


@pytest.mark.parametrize("room", [100, 20_000])  # too little for the plan, and for the model
def test_a_full_disk_is_told_and_leaves_no_folder(go, tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        code, _, err = go("--method", "magnitude_pruning:ratio=0.5", "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2 and "cannot" in err and "File too large" in err and not (tmp_path / "out").exists()
    assert go("--method", "magnitude_pruning:ratio=0.5", "-o", tmp_path / "out")[0] == 0
