"""The cost curve: measured when asked for and only then, kept for one machine and shape, never believed blindly."""

import copy
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

import lithe
from lithe.errors import LitheError
from lithe.kernels import build, library
from lithe.model import curve, machine, runtime
from lithe.model.checkpoint import save
from lithe.model.config import Config
from lithe.model.curve import CostCurve, Runtime
from lithe.model.decoder import Decoder
from lithe.model.load import load

SMALL = Config(vocab=96, width=32, layers=2, heads=4, kv_heads=2, ffn=48, context=80)
CURVE = CostCurve(rows=(1, 2, 4, 8), medians=(1.0, 1.0, 2.0, 3.0), spreads=(0.1, 0.1, 0.1, 0.1), context=16, threads=1)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache and threads of the test's own."""
    monkeypatch.setenv("LITHE_CACHE", str(tmp_path / "cache"))
    for name in ("LITHE_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(library, "_taken", None)
    monkeypatch.setattr(runtime, "_lowered", (0, 0))
    monkeypatch.setattr(runtime, "_reason", "")
    monkeypatch.setattr(runtime, "MOST", 3)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path):
    return save(Decoder(SMALL).init(0), tmp_path / "m")


def files(tmp_path):
    return sorted((tmp_path / "cache" / "runtime").glob("*"))


def test_between_rows_it_is_straight_and_beyond_them_goes_on():
    assert [CURVE.seconds(n) for n in (1, 2, 3, 4, 6, 8, 12)] == [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    assert CURVE.ratio(6) == 2.5 and not CURVE.noisy
    falling = CostCurve(rows=(1, 2), medians=(2.0, 1.0), spreads=(1.0, 1.0), context=0, threads=1)
    assert falling.seconds(9) == 1.0 and falling.noisy  # more rows are never cheaper than the last measured
    assert CostCurve(rows=(1,), medians=(2.0,), spreads=(0.0,), context=0, threads=1).seconds(7) == 2.0


def test_measured_once_and_kept(folder, tmp_path, monkeypatch):
    model, seen = load(folder), []
    found = runtime.cost_curve(model, progress=lambda done, total: seen.append((done, total)))
    assert found.rows == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) and found.context == 40 and found.threads == 1
    assert all(t > 0 for t in found.medians) and seen[0] == (1, runtime.MOST) and len(files(tmp_path)) == 1
    monkeypatch.setattr(runtime, "_curve", lambda *_: pytest.fail("it was measured again"))
    assert runtime.cost_curve(load(folder)) == found == runtime.stored(model).curves[1]


def test_a_short_context_is_measured_as_far_as_it_goes(tmp_path):
    model = load(save(Decoder(SMALL.replace(context=3)).init(0), tmp_path / "m"))
    found = runtime.cost_curve(model)
    assert found.rows == (1, 2) and found.context == 1
    found = runtime.cost_curve(load(save(Decoder(SMALL.replace(context=600)).init(0), tmp_path / "n")))
    assert found.rows[-1] == 64 and found.context == 256


def test_what_times_depend_on_is_in_the_key(folder, tmp_path):
    model = load(folder)
    runtime.cost_curve(model)
    others = [load(folder, dtype="bf16"), load(folder, dtype="int8"), load(folder, dtype="int8:128"), load(folder, fast=False),
              load(save(Decoder(SMALL.replace(width=64)).init(0), tmp_path / "wide"))]
    swapped = load(folder)
    swapped.sites("layers.0.mlp.up_proj")[0].swap(nn.Linear(32, 48, bias=False))
    assert [runtime.stored(other) for other in (*others, swapped)] == [None] * 6
    tuned = load(save(Decoder(SMALL).init(9), tmp_path / "tuned"))
    assert runtime.stored(tuned) is not None  # weights decide nothing


def test_nothing_is_measured_unasked(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "Bench", lambda *_: pytest.fail("something was measured"))
    model = load(folder)
    assert len(list(lithe.generate(model, [1, 2, 3], max_tokens=4))) == 4
    assert runtime.report(model)["curve"] is None and files(tmp_path) == []


def kept(folder, threads: int) -> Decoder:
    """The model, its runtime kept as if measured best on so many of two threads."""
    torch.set_num_threads(2)
    model = load(folder)
    made = Runtime(threads=threads, tried={1: (1e-3, 2e-3), 2: (3e-3, 4e-3)}, curves={})
    curve.keep(made, runtime._key(model))
    library._taken = None
    torch.set_num_threads(2)
    return model


@pytest.mark.skipif(library.load() is None, reason="only compiled kernels take threads over")
def test_fewer_threads_are_taken_where_they_were_faster(folder, monkeypatch):
    expected = [step.tokens for step in lithe.generate(kept(folder, 1), [1, 2, 3], max_tokens=8)]
    model = load(folder)
    assert (model.threads, runtime.stored(model).threads) == (1, 1)
    assert runtime.why_threads() == "measured: T(1) is 1.00 ms on 1, 3.00 ms on 2"
    assert [step.tokens for step in lithe.generate(model, [1, 2, 3], max_tokens=8)] == expected
    assert load(folder, threads=2).threads == 2 and runtime.why_threads() == "asked for"  # then nothing else counts
    monkeypatch.setenv("LITHE_THREADS", "2")
    assert load(folder).threads == 2 and runtime.why_threads() == "LITHE_THREADS=2 asks for it"


def test_all_threads_are_kept_without_a_clear_gain(folder, monkeypatch):
    """Two threads are tried, and only a slow quartile below all threads' quick one counts."""
    took = iter([3.0, 1.0, 2.0, 1.0, 1.0, 2.0, 3.0] * 99)
    monkeypatch.setattr(runtime.Bench, "seconds", lambda self, rows: next(took))
    torch.set_num_threads(2)
    found = runtime.measure(load(folder))
    assert found.threads == 2 and set(found.tried) == {1, 2}
    quick = lambda self, rows: 1.0 if self.model.threads == 1 else 2.0
    monkeypatch.setattr(runtime.Bench, "seconds", quick)
    torch.set_num_threads(2)
    assert runtime.measure(load(folder)).threads == 1 and "LITHE_THREADS" not in os.environ


def test_on_a_busy_machine_nothing_is_chosen(folder, monkeypatch, capsys):
    def taken(self, rows):
        self.spent += 1.0  # by the clock, while this process got nothing
        return 1.0 if self.model.threads == 1 else 2.0

    monkeypatch.setattr(runtime.Bench, "seconds", taken)
    torch.set_num_threads(2)
    found = runtime.measure(load(folder))
    assert (found.threads, found.tried) == (2, {}) and "threads were not compared" in capsys.readouterr().err
    assert load(folder).threads == (2 if library.load() else torch.get_num_threads())


SPOILS = {
    "empty": lambda raw: "", "not JSON": lambda raw: json.dumps(raw)[:-9], "a list": lambda raw: "[]", "NaN": lambda raw: "NaN",
    "another version": lambda raw: json.dumps(raw | {"version": 99}),
    "another machine": lambda raw: json.dumps(raw | {"key": raw["key"] | {"cores": 999}}),
    "no curves": lambda raw: json.dumps({k: v for k, v in raw.items() if k != "curves"}),
    "rows that fall": lambda raw: spoil(raw, rows=[1, 4, 2]), "rows from two": lambda raw: spoil(raw, rows=[2, 3]),
    "too few times": lambda raw: spoil(raw, medians=[1.0]), "no time at all": lambda raw: spoil(raw, medians=[0] * 11),
    "words": lambda raw: spoil(raw, medians=["1"] * 11), "another's": lambda raw: spoil(raw, threads=7),
    "too many threads": lambda raw: json.dumps(raw | {"threads": 99}),
    "half a thread": lambda raw: json.dumps(raw | {"threads": 0.5}),
}  # fmt: skip


def spoil(raw: dict, **values) -> str:
    return json.dumps(raw | {"curves": {"1": raw["curves"]["1"] | values}})


@pytest.mark.parametrize("name", SPOILS)
def test_a_file_that_cannot_be_used_is_told_and_measured_anew(folder, tmp_path, capsys, name):
    model = load(folder)
    runtime.cost_curve(model)
    (path,) = files(tmp_path)
    whole = json.loads(path.read_text())
    path.write_text(SPOILS[name](whole))
    capsys.readouterr()
    assert runtime.stored(model) is None
    said = capsys.readouterr().err
    assert said.startswith("lithe: a stored measurement is not used") and path.name in said and said.count("\n") == 1
    assert runtime.cost_curve(model).rows[0] == 1 and runtime.stored(model) is not None and files(tmp_path) == [path]


def test_a_folder_that_cannot_be_written_is_no_loss(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LITHE_CACHE", str(tmp_path / "file"))
    assert runtime.cost_curve(load(folder)).rows[0] == 1
    assert "cannot be kept" in capsys.readouterr().err


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["1", "rows", "medians", "spreads", "context", "threads", "x"]), inner, max_size=4), max_leaves=9)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(["threads", "tried", "curves"]), JSON))
def test_any_content(raw):
    key, whole = {"threads": 4}, {"threads": 1, "tried": {}, "curves": {}}
    try:
        found = curve._parse({"version": curve.VERSION, "key": key} | whole | raw, key, curve.Path("x"))
    except LitheError:
        return
    assert all(one.seconds(5) > 0 for one in found.curves.values())


def test_the_report_names_what_a_swap_un_fused(folder):
    model = load(folder)
    before = runtime.report(model)
    assert (before["layers"], before["precision"], before["why_not"]) == (2, "float32", {})
    model.sites("layers.1.mlp.up_proj")[0].swap(nn.Linear(32, 48, bias=False))
    after = runtime.report(model)
    if library.load() is not None:
        assert (before["compiled"], after["compiled"]) == (2, 1)
        assert list(after["why_not"]) == [1] and "Linear" in after["why_not"][1]
    plain = runtime.report(load(folder, fast=False))
    assert plain["kernels"] == "torch" and plain["compiled"] == 0
    assert "in torch.float64" in runtime.report(copy.deepcopy(load(folder, dtype=torch.float64)))["why_kernels"]


def test_the_kernels_say_why(monkeypatch):
    monkeypatch.setenv("LITHE_KERNELS", "off")
    assert machine.kernels()["why"] == "LITHE_KERNELS=off asks for PyTorch's operators"
    monkeypatch.delenv("LITHE_KERNELS")
    if library.load() is None:
        pytest.skip("no kernels here")
    found, names = machine.kernels(), list(build.VARIANTS)
    assert found["variant"] == library.load().name and list(found["better"]) == names[: names.index(found["variant"])]
    assert all(why.startswith("this processor lacks ") for why in found["better"].values())
    worst = library.variants()[-1]
    monkeypatch.setenv("LITHE_KERNELS", worst)
    forced = machine.kernels()
    assert (forced["variant"], forced["why"]) == (worst, f"LITHE_KERNELS={worst} asks for it")
    assert all(f"LITHE_KERNELS={worst} asks" in why or "lacks" in why for why in forced["better"].values())
