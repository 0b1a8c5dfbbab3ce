"""The suite of engines: the same weights everywhere, honest turns, numbers that a reader can check."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from lithe.bench import quiet
from lithe.bench.engines import LITHE, LLAMA, MACHINE, TRANSFORMERS, _gguf, _rows, _suite, _target, _turns, _worker
from lithe.bench.engines._bench import bench_engines
from lithe.bench.ledger import Ledger
from lithe.cli import run
from lithe.errors import UnsupportedError, UsageError
from lithe.model.checkpoint import load, save
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.ops.rope import rotate

SMALL = Config(vocab=96, width=64, layers=2, heads=4, kv_heads=2, ffn=96, context=320, tied=True)
IDS = list(range(1, 25))
needs_llama = pytest.mark.skipif(not (find_spec("llama_cpp") and find_spec("gguf")), reason="pip install 'lithe[engines]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(Decoder(SMALL).init(3), tmp_path_factory.mktemp("engines") / "model", dtype=torch.bfloat16)


def opened(name, folder, precision="fp32"):
    file = folder.parent / f"{precision}.gguf"
    if name == LLAMA and not file.exists():
        _gguf.write(load(folder), file, precision)
    module = __import__(f"lithe.bench.engines.{_worker.MODULES[name]}", fromlist=["Engine"])
    return module.Engine(folder=str(folder), precision=precision, threads=1, capacity=320, file=str(file))


@pytest.mark.parametrize("name", [LITHE, TRANSFORMERS, pytest.param(LLAMA, marks=needs_llama)])
def test_every_engine_runs_the_same_model(name, folder):
    """Logits are those of the plain model; a pass that is cut leaves nothing behind; greedy tokens follow from the logits."""
    with torch.inference_mode():
        expected = load(folder)(torch.tensor([IDS]), logits="all").scores[0].numpy()
    engine = opened(name, folder)
    engine.clear()
    engine.run(IDS[:9], every=False)
    assert np.abs(engine.logits() - expected[8:9]).max() < 5e-3 * np.abs(expected).max()
    engine.run([5, 6, 7], every=True)
    engine.cut(9)
    engine.run(IDS[9:], every=True)
    assert engine.logits().shape == (15, 96)
    assert np.abs(engine.logits() - expected[9:]).max() < 5e-3 * np.abs(expected).max()
    tokens, seconds = engine.decode(IDS, 6)
    assert len(tokens) == 6 and seconds > 0
    assert tokens[0] == expected[-1].argmax() == _worker.first(engine, IDS)
    nats = -torch.log_softmax(torch.from_numpy(expected).double(), -1)[torch.arange(23), torch.tensor(IDS[1:])]
    assert _worker.loss(engine, [IDS], rows=7)[0] == pytest.approx(nats.tolist(), abs=5e-3)


@needs_llama
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_formats_cost_both_engines_about_the_same(precision, folder):
    exact = opened(LITHE, folder)
    found = {}
    for name in (LITHE, LLAMA):
        engine = opened(name, folder, precision)
        for each in (exact, engine):
            each.clear()
            each.run(IDS, every=True)
        found[name] = np.abs(engine.logits() - exact.logits()).mean()
    assert found[LITHE] > 0 or precision == "bf16"
    assert found[LITHE] < 1.5 * found[LLAMA] + 1e-3 and found[LLAMA] < 1.5 * found[LITHE] + 1e-3


@needs_llama
def test_llamas_own_drafts_change_passes_and_not_the_text(tmp_path):
    """A draft that is the model itself is always right, one of other weights hardly ever; copies are looked up in the text."""
    from lithe.bench.engines._llama import Engine

    own, other = tmp_path / "own.gguf", tmp_path / "other.gguf"
    for seed, file in ((3, own), (9, other)):
        _gguf.write(Decoder(SMALL.replace(tied=False)).init(seed), file, "fp32")
    make = lambda draft: Engine(folder="", precision="fp32", threads=1, capacity=320, file=str(own), flash=False,
                                draft=str(draft))
    plain = make(own).text(IDS, 12, {})
    assert plain["passes"] == 12 and len(plain["tokens"]) == 12
    sure = make(own).text(IDS, 12, {"draft": True, "tokens": 3, "sure": 0.0})
    assert sure["tokens"] == plain["tokens"] and sure["passes"] == 3
    unsure = make(other).text(IDS, 12, {"draft": True, "tokens": 3, "sure": 0.0})
    assert unsure["tokens"] == plain["tokens"] and 3 < unsure["passes"] <= 12
    assert make(own).text(IDS, 12, {"draft": True, "tokens": 3, "sure": 1.0})["passes"] == 12  # never so sure
    looked = make(own).text([*IDS, *plain["tokens"], *IDS], 12, {"lookup": 3, "tokens": 4})
    again = make(own).text([*IDS, *plain["tokens"], *IDS], 12, {})
    assert looked["tokens"] == again["tokens"] and looked["passes"] <= again["passes"]


def test_rows_of_queries_are_permuted_as_the_other_rotation_needs():
    """Scores of queries and keys do not change when neighbours are turned in pairs, as llama.cpp does."""
    dice = torch.Generator().manual_seed(0)
    x_TC = torch.randn(5, 64, generator=dice)
    heads = {name: torch.randn(count * 16, 64, generator=dice) for name, count in (("q", 4), ("k", 4))}
    angles = torch.outer(torch.arange(5.0), 10000.0 ** -(torch.arange(0, 16, 2) / 16))
    cos, sin = angles.cos(), angles.sin()
    ours = {name: rotate((x_TC @ w.T).view(1, 5, 4, 16).transpose(1, 2), torch.cat((cos, cos), -1)[None],
                         torch.cat((sin, sin), -1)[None]) for name, w in heads.items()}
    theirs = {}
    for name, w in heads.items():
        y = (x_TC @ _gguf.permuted(f"layers.0.self_attn.{name}_proj.weight", w, SMALL).T).view(5, 4, 8, 2)
        even, odd = y[..., 0], y[..., 1]
        theirs[name] = torch.stack((even * cos[:, None] - odd * sin[:, None], even * sin[:, None] + odd * cos[:, None]), -1)
    wanted = torch.einsum("bhtd,bhsd->hts", ours["q"], ours["k"])
    found = torch.einsum("thdp,shdp->hts", theirs["q"], theirs["k"])
    assert torch.allclose(found, wanted, atol=1e-4)


def test_only_plain_llama_is_converted():
    for trait in ({"qkv_bias": True}, {"qk_norm": "head"}, {"window": 8}, {"norm_out": True}, {"logit_cap": 30.0}):
        with pytest.raises(UnsupportedError, match="plain Llama"):
            _gguf.check(Config(vocab=9, width=8, layers=1, heads=2, kv_heads=1, ffn=8, context=8, **trait))
    _gguf.check(SMALL)


def test_a_worker_answers_fails_and_dies_in_words(folder, monkeypatch):
    settings = {"folder": str(folder), "precision": "fp32", "threads": 1, "capacity": 320}
    with _turns.Worker(LITHE, **settings) as worker:
        assert worker.open()["weights_mb"] > 0
        assert worker.turn("prefill", ids=IDS) > 0
        times = worker.turn("curve", ids=IDS, behind=9, rows=[1, 4])
        assert len(times) == 2 and min(times) > 0 and worker.peak_mb > 10
        with pytest.raises(_turns.EngineError, match="KeyError: 'nosuch'"):
            worker.ask("nosuch")
        assert worker.ask("first", ids=IDS) in range(96)  # an error ends a task, not the process
        monkeypatch.setattr(_turns, "LIMIT_S", 0.0)
        with pytest.raises(_turns.EngineError, match="no answer to 'curve'"):
            worker.ask("curve", ids=IDS, behind=9, rows=[1] * 5000)  # long enough to be stopped at
        monkeypatch.undo()
        with pytest.raises(_turns.EngineError, match="its process ended at 'first'"):
            worker.ask("first", ids=IDS)


class Planted:
    """A worker whose numbers are known: time goes by rounds, one engine twice as fast as the other."""

    def __init__(self, engine, **settings):
        self.engine, self.settings, self.busy, self.peak_mb, self.begun = engine, settings, [0.0], 100.0, 0.0
        self.scale = {LITHE: 1.0, TRANSFORMERS: 4.0, MACHINE: 1.0}[engine]
        self.count = 0

    def open(self):
        return {"pass_mb": 1.0, "weights_mb": 1.0, "cache_mb": 1.0, "cache": "float32"} if self.engine == LITHE else {}

    def ask(self, task, **words):
        if task == "decode":
            if self.engine == TRANSFORMERS and self.settings["precision"] == "bf16":
                raise _turns.EngineError("planted")
            self.count += 1
            return [1] * words["count"], self.scale * self.count * words["count"]
        if task == "curve":
            return [self.scale * n for n in words["rows"]]
        return {"check": {"best": [1], "top": [2.0], "first": [[1.0, 2.0]]}, "loss": [[1.0]] * len(words.get("windows", ())),
                "bandwidth": 1e9, "peak": 1e12}.get(task, self.scale)

    turn = ask

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(_suite, "Worker", Planted)
    monkeypatch.setattr(_suite, "cost_of_import", lambda module: (1.0, 200.0))
    monkeypatch.setattr(quiet, "listen", lambda: quiet.Quiet(20.0, 60.0, 0.0))


def test_turns_become_ratios_and_a_failure_stays_in_its_cell(folder, planted, tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl")
    run, target = bench_engines(str(folder), engines=[LITHE, TRANSFORMERS], precisions=["fp32", "bf16"], texts=[], rounds=3,
                                tokens=4, threads=1, ledger=book)
    by = {(cell.engine, cell.precision): cell for cell in run.cells}
    assert not run.disturbed and run.left_out == 0
    assert by[TRANSFORMERS, "bf16"].error == "planted"
    own = by[LITHE, "fp32"]
    assert own.samples["decode"] == [2.0, 3.0, 4.0]  # the first turn warms and does not count
    found = _rows.ratios([cell for cell in run.cells if cell.precision == "fp32"], target.config)
    ratio = found["tokens/s against transformers' generate"]
    assert (ratio.value, ratio.low, ratio.high) == (4.0, 4.0, 4.0)
    assert found["T(8)/T(1) of lithe"].value == 8.0
    records = book.read()
    assert {(r.method, r.precision) for r in records} >= {(LITHE, "fp32"), (TRANSFORMERS, "fp32"), (MACHINE, "bf16")}
    kept = next(r.measured for r in records if r.method == LITHE and r.precision == "fp32")
    assert kept["ratios"]["T(8)/T(1) of lithe"] == [8.0, 8.0, 8.0] and kept["samples"]["decode"] == [2.0, 3.0, 4.0]


def test_disturbed_rounds_are_left_out_or_the_run_is_marked(folder, planted, monkeypatch):
    loud, calm = quiet.Quiet(900.0, 8000.0, 0.6), quiet.Quiet(20.0, 60.0, 0.0)
    heard = iter([calm, calm, loud, *[calm] * 20])  # the first round ends and the second begins in noise
    monkeypatch.setattr(quiet, "listen", lambda: next(heard))
    ask = lambda: bench_engines(str(folder), engines=[LITHE], precisions=["fp32"], texts=[], rounds=3, threads=1)[0]
    run = ask()
    assert (run.left_out, run.disturbed) == (2, False)
    assert len(run.cells[0].samples["decode"]) == 3
    monkeypatch.setattr(quiet, "listen", lambda: loud)
    run = ask()
    assert run.disturbed and run.left_out == 6 and len(run.cells[0].samples["decode"]) == 6


def test_the_machines_bound_is_bytes_or_operations():
    """Few rows wait for memory, many for arithmetic; attention adds to both."""
    machine = {"bandwidth": [1e9], "peak": [1e10], "peak_fp32": [1e9]}
    facts = {"pass_mb": 0.1, "cache": "float32"}
    weights = 2 * (64 * 16 * (2 * 4 + 2 * 2) + 3 * 64 * 96) + 96 * 64
    slots = 2 * 2 * (2 * 16)
    (one,), (many,) = (_rows.bound(machine, facts, SMALL, n, behind=10) for n in (1, 64))
    assert one == pytest.approx((1e5 + slots * 11 * 4) / 1e9)
    assert many == pytest.approx(64 * (2 * weights / 1e10 + 2 * 4 * 64 * (10 + 32.5) / 1e9))


def test_a_ratio_pairs_the_rounds():
    ratio = _rows.ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    wide = _rows.ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert wide.low < wide.value == 3.0 < wide.high
    assert _rows.ratio([], [1.0]) is None


def test_a_missing_engine_is_a_row(monkeypatch, folder, planted, capsys):
    monkeypatch.setattr(_turns, "find_spec", lambda name: None if name == "llama_cpp" else True)
    words = ["bench", str(folder), "--suite", "engines", "--precision", "fp32", "--rounds", "2", "--no-ledger"]
    assert run(words) == 0
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith(LLAMA))
    assert "not installed: pip install 'lithe[engines]'" in line and "4.00 (4.00 to 4.00)" in told
    assert run([*words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["engine"] for row in rows} == {LITHE, TRANSFORMERS, LLAMA, MACHINE}


def test_options_of_the_other_suite_are_refused(capsys, folder):
    for words, said in (("--suite engines --temperature 1", "no --temperature"), ("--engine lithe", "no --engine"),
                        ("--suite nosuch", "no suite"), ("--suite engines --engine x --no-ledger", "no 'x'")):
        assert run(["bench", str(folder), *words.split()]) == UsageError.exit_code
        assert said in capsys.readouterr().err
    with pytest.raises(UsageError, match="no shape"):
        _target.prepare("shape:nosuch", folder, [])


def test_the_page_is_written_from_the_ledger(folder, planted, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(_target.Path(__file__).parents[2] / "tools"))
    import engines as page

    book = Ledger(tmp_path / "ledger.jsonl")
    settings = {"engines": [LITHE, TRANSFORMERS], "precisions": ["fp32"], "texts": [], "rounds": 3, "threads": 1}
    for _ in range(2):  # the newer run replaces the older one
        bench_engines(str(folder), **settings, ledger=book)
    found = page.newest(book.read())
    assert {precision: len(records) for precision, records in found[str(folder)].items()} == {"fp32": 3}
    text = page.page(found)
    assert "| tokens/s against transformers' generate | 4.00 (4.00 to 4.00) |" in text
    assert page.picture(found).count("<polyline") == 2
