"""The measuring verbs from end to end: what they print, where they write, how they exit."""

import json
import os
import subprocess
import sys

import pytest

from lithe.bench import quiet
from lithe.bench.ledger import Ledger
from lithe.bench.runner import Stopped
from lithe.cli import run
from lithe.model.load import zoo
from tests.bench.folder import small_text_folder
from tests.bench.methods import FOLLOWS, LOSSY, RAISES, WARM, write

NAMES = {"method", "prompts", "tokens", "passes", "tokens_per_pass", "tokens_per_s", "speedup", "speedup_interval",
         "draft_share", "same", "of", "looping", "peak_rss_mb", "lossless", "nodes_per_pass", "accepted", "prefill_s",
         "speedup_nonlooping", "disturbed", "error"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Planted methods and prompts by name, a ledger of our own, a quiet machine."""
    monkeypatch.setenv("LITHE_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setattr(quiet, "listen", lambda: quiet.Quiet(20.0, 60.0, 0.0))
    texts = ["a fox saw a fox.", "the dog", "one and one and one"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    (tmp_path / "text.txt").write_text("a quick fox and a lazy dog. " * 9)
    paths = write(tmp_path, follows=FOLLOWS, lossy=LOSSY, raises=RAISES.replace("== 9", "== 1"), warm=WARM)
    return paths | {"model": str(small_text_folder()), "prompts": str(tmp_path / "prompts.jsonl"),
                    "text": str(tmp_path / "text.txt"), "ledger": tmp_path / "ledger.jsonl"}


def bench(here, *words):
    return run(["bench", here["model"], "--prompts", here["prompts"], "--max-tokens", "12", *words])


def test_bench_prints_one_json_line_a_row_and_records_each(here, capsys):
    assert bench(here, "--method", here["follows"], "--json") == 0
    plain, follows = map(json.loads, capsys.readouterr().out.splitlines())
    assert NAMES <= set(plain) == set(follows)
    assert (plain["method"], follows["method"]) == ("plain", "follows")
    assert plain["same"] == follows["same"] == follows["of"] == follows["prompts"] == 3 and follows["lossless"]
    assert [record.measured for record in Ledger(here["ledger"]).read()] == [plain, follows]


def test_bench_tells_what_differs_what_failed_and_what_disturbed(here, capsys, monkeypatch):
    monkeypatch.setattr(quiet, "listen", lambda: quiet.Quiet(900.0, 8000.0, 0.6))
    words = [word for name in ("follows", "lossy", "raises") for word in ("--method", here[name])]
    assert bench(here, *words, "--no-ledger") == 1
    told = capsys.readouterr()
    lines = {line.split()[0]: line for line in told.out.splitlines()}
    assert "3/3" in lines["follows"] and "3/3" not in lines["lossy"] and "/3" in lines["lossy"]
    assert "failed: raises: ArithmeticError: planted" in told.err and "differs: lossy" in told.err
    assert "disturbed" in told.err and "8000 us" in told.err
    assert not here["ledger"].exists()


def test_bench_samples_by_batches_and_takes_the_first_prompts(here, capsys):
    assert bench(here, "--warp", here["warm"], "--batch", "2", "--limit", "2", "--method", here["follows"], "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompts"], row["tokens"], row["same"]) for row in rows] == [(2, 24, None)] * 2


def test_bench_reports_what_was_done_before_ctrl_c(here, capsys, monkeypatch):
    from lithe.bench import runner

    done = runner.bench

    def stopped(*words, **settings):
        rows = done(*words, **settings)
        for row in rows:
            row.interrupted = True
        raise Stopped(rows)

    monkeypatch.setattr(runner, "bench", stopped)
    assert bench(here, "--json") == 130
    told = capsys.readouterr()
    assert json.loads(told.out)["interrupted"] and "interrupted: the rows cover the 3 prompts" in told.err


def test_bench_refuses_before_it_works(here, capsys, monkeypatch):
    monkeypatch.setattr("lithe.bench.runner.measure", lambda *_: pytest.fail("something ran"))
    for words, code, reason in [
        (["--method", "nosuch"], 2, "no method"),
        (["--ledger", f"{here['text']}/ledger.jsonl"], 2, "--no-ledger"),
        (["--ledger", "x", "--no-ledger"], 2, "exclude each other"),
        (["--prompts", "nowhere.txt"], 2, "no prompts file"),
    ]:
        assert bench(here, *words) == code
        assert reason in capsys.readouterr().err


def test_doctor_proves_or_points(here, capsys):
    words = ["--prompts", here["prompts"], "--max-tokens", "12"]
    assert run(["doctor", here["model"], "--method", here["follows"], *words]) == 0
    told = capsys.readouterr().out
    assert "same       3 of 3 prompts, 36 tokens" in told and "verdict    lossless here: every token is the same" in told
    assert run(["doctor", here["model"], "--method", here["lossy"], *words]) == 1
    told = capsys.readouterr().out
    assert "NOT lossless" in told and "prompt 1, token 6" in told and "beyond the noise" in told
    assert run(["doctor", here["model"], "--method", here["lossy"], *words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["differences"][0]["position"] == 5 and not found["lossless"] and found["threads"] >= 1


def test_eval_prints_and_records(here, capsys):
    assert run(["eval", here["model"], here["text"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == found["bytes"] == 9 * 28 - 1 and found["nll"] > 0 and found["bits_per_byte"] > 0
    (record,) = Ledger(here["ledger"]).read()
    assert record.suite == "eval" and record.measured == found and record.model_hash
    assert run(["eval", here["model"], here["text"], "--no-ledger"]) == 0
    assert "bits per byte over 251 bytes of 1 text\n" in capsys.readouterr().out


@pytest.mark.skipif(not zoo(), reason="no model has been shipped yet")
def test_the_shipped_model_from_a_process_of_its_own(here):
    words = ["bench", f"zoo:{zoo()[0]}", "--method", here["follows"], "--limit", "2", "--max-tokens", "16", "--json"]
    main = [sys.executable, "-c", "from lithe.cli import main; main()"]
    ran = subprocess.run([*main, *words], capture_output=True, text=True, env=os.environ, timeout=120)
    assert ran.returncode == 0, ran.stderr
    plain, follows = map(json.loads, ran.stdout.splitlines())
    assert plain["tokens"] == follows["tokens"] and follows["same"] == 2
