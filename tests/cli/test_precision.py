"""--dtype on every verb, `env MODEL`, and `convert`: what is asked for is what runs, and it is told."""

import json

import pytest
import torch

from lithe import registry
from lithe.bench.evaluate import documents, evaluate
from lithe.bench.ledger import Ledger
from lithe.cli import run
from lithe.kernels import library
from lithe.model import runtime
from lithe.model.checkpoint import fingerprint
from lithe.model.linear import PackedLinear
from lithe.model.load import load
from tests.bench.folder import small_text_folder

DRAFT = next(e for e in registry.entries("decode", "draft") if e.card.row is None and not e.card.needs)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LITHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LITHE_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setattr(runtime, "MOST", 3)
    (tmp_path / "text.txt").write_text("a quick fox and a lazy dog. " * 9)
    (tmp_path / "prompts.txt").write_text("a fox saw a fox\n")


@pytest.fixture
def told(capsys):
    """Run a command line that must succeed, and return what it printed."""

    def go(*words: object) -> str:
        assert run([str(word) for word in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return go


FOLDER = small_text_folder()


def test_eval_scores_through_the_packed_model(told, tmp_path):
    text = tmp_path / "text.txt"
    score = lambda dtype: json.loads(told("eval", FOLDER, text, "--dtype", dtype, "--json"))["nll"]
    nll = {dtype: score(dtype) for dtype in ("fp32", "int8", "int4")}
    assert len(set(nll.values())) == 3 and abs(nll["int8"] - nll["fp32"]) < abs(nll["int4"] - nll["fp32"])
    model = load(FOLDER, dtype="int4")
    assert any(isinstance(module, PackedLinear) and module.kind == "int4" for module in model.modules())
    assert nll["int4"] == evaluate(model, documents(text)).nll
    assert [record.precision for record in Ledger(tmp_path / "ledger.jsonl").read()] == ["float32", "int8:32", "int4:32"]


def test_every_verb_takes_it(told, tmp_path):
    prompts = ("--prompts", tmp_path / "prompts.txt", "--max-tokens", "8")
    told("bench", FOLDER, "--dtype", "int4:128", *prompts)
    assert Ledger(tmp_path / "ledger.jsonl").read()[0].precision == "int4:128"
    assert told("generate", FOLDER, "a fox", "--max-tokens", "8", "--dtype", "bf16").strip()
    found = json.loads(told("doctor", FOLDER, "--method", DRAFT.address, *prompts, "--dtype", "int8", "--json"))
    assert found["dtype"] == found["runtime"]["precision"] == "int8:32" and found["identical"]
    assert "precision  int8:32\n" in told("doctor", FOLDER, "--method", DRAFT.address, *prompts, "--dtype", "int8")


def test_the_demo_in_json(told):
    words = ("--max-tokens", "4", "--dtype", "int8", "--threads", "1")
    found = json.loads(told("demo", "--model", "zoo:tiny-draft", *words, "--json"))
    plain, *others = found["methods"]
    assert found["identical"] and len(others) == 3 and all(row["identical"] and row["tokens"] == 16 for row in others)
    assert plain["method"] == "plain" and plain["tokens"] == plain["passes"] == 16 and plain["tokens_per_pass"] == 1


def test_env_tells_of_a_model_what_runs_it(told, tmp_path, monkeypatch):
    assert "model" not in json.loads(told("env", "--json"))
    found = json.loads(told("env", FOLDER, "--dtype", "int8", "--json"))
    model, file = found["model"], next((tmp_path / "cache" / "runtime").glob("*"))
    assert model["precision"] == "int8:32" and model["kernels"] == found["kernels"]["variant"]
    assert model["curve"]["rows"][0] == 1 and model["curve"]["T8/T1"] > 0 and model["layers"] == 2
    assert model["compiled"] == (2 if library.load() else 0) and model["why_not"] == {}
    before = file.stat().st_mtime_ns
    text = told("env", FOLDER, "--dtype", "int8")
    assert file.stat().st_mtime_ns == before and " ms a row behind 32 tokens; 8 rows take " in text
    told("env", FOLDER, "--dtype", "int8", "--measure")
    assert file.stat().st_mtime_ns > before
    monkeypatch.setenv("LITHE_KERNELS", "off")
    off = told("env", FOLDER, "--dtype", "bf16")
    assert off.count("LITHE_KERNELS=off asks for PyTorch's operators") == 2 and "0 of 2 compiled" in off


@pytest.mark.parametrize(("dtype", "kind"), [("int4:128", "int4:128"), ("fp16", "float16")])
def test_convert_writes_a_folder_that_needs_no_original(told, tmp_path, dtype, kind):
    out = tmp_path / "out"
    assert told("convert", FOLDER, out, "--dtype", dtype) == f"wrote {out}; try: lithe generate {out} 'Once upon a time'\n"
    own = json.loads((out / "lithe.json").read_text())
    assert own["receipts"] == [{"method": "round to nearest", "knobs": {"dtype": kind}, "seed": None,
                                "parent": fingerprint(FOLDER)}]
    asked, back = load(FOLDER, dtype=dtype), load(out, dtype=None if ":" in dtype else dtype)
    for name, tensor in asked.state_dict().items():
        assert not torch.is_tensor(tensor) or torch.equal(tensor, back.state_dict()[name]), name
    assert back.tokenizer is not None
    told("convert", FOLDER, "-o", out, "--dtype", "int8", "--overwrite")
    assert told("generate", out, "a fox", "--max-tokens", "4")


@pytest.mark.parametrize(("words", "code", "said"), [
    (["{out}"], 2, "say into which precision: --dtype bf16"), ([], 2, "say which folder to write, once"),
    (["{out}", "-o", "{out}"], 2, "once"), (["{out}", "--dtype", "int7"], 2, "no dtype 'int7'"),
    (["{out}", "--tokenizer", "x", "--dtype", "int8"], 2, "converted as it is"),
])  # fmt: skip
def test_what_convert_cannot_do(capsys, tmp_path, words, code, said):
    assert run(["convert", str(FOLDER), *(word.format(out=tmp_path / "out") for word in words)]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_packed_folder_takes_no_other_precision(capsys, tmp_path):
    assert run(["convert", str(FOLDER), str(tmp_path / "out"), "--dtype", "int8"]) == 0
    capsys.readouterr()
    assert run(["generate", str(tmp_path / "out"), "a", "--dtype", "int4"]) == 3
    assert "holds packed weights, which load as they are: leave dtype=int4 out" in capsys.readouterr().err
