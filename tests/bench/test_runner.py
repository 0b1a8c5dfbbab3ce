"""The bench counts right, compares right, and believes no method."""

import pytest

import lithe
from lithe.bench import quiet, runner
from lithe.bench.ledger import Ledger
from lithe.bench.measure import measure
from lithe.bench.runner import Stopped, bench
from lithe.contracts.small import small_model
from lithe.errors import TooLargeError, UnsupportedError, UsageError
from lithe.model.cache import PlainCache
from tests.bench.methods import FOLLOWS, INTERRUPTS, LOSSY, NEEDY, RAISES, SHORT, WARM, write

pytestmark = pytest.mark.usefixtures("silence")

PROMPTS = [[1, 2, 3, 1, 2], [4, 5], [9, 8, 9, 8], [6]]
TOKENS = 20


def run(methods=(), prompts=PROMPTS, **settings):
    rows = bench(small_model(), methods, prompts, **{"max_tokens": TOKENS} | settings)
    return {row.method.partition(":")[0]: row for row in rows}


@pytest.fixture
def mine(tmp_path):
    """Paths of planted methods, by name."""
    return write(tmp_path, follows=FOLLOWS, lossy=LOSSY, short=SHORT, raises=RAISES, interrupts=INTERRUPTS, needy=NEEDY,
                 warm=WARM)


@pytest.mark.parametrize("batch", [1, 3])
def test_plain_decoding_comes_first_and_a_lossless_draft_gives_the_same_in_fewer_passes(mine, batch):
    rows = run([mine["follows"]], batch=batch, repeats=2)
    assert list(rows) == ["plain", "follows"]
    for row in rows.values():
        assert (row.prompts, row.same, row.of, row.tokens, row.repeats) == (4, 4, 4, 4 * TOKENS, 2) and row.lossless
        assert sum(row.accepted) == row.passes and sum((n + 1) * times for n, times in enumerate(row.accepted)) == row.tokens
        assert row.prefill_s > 0 and row.tokens_per_s > 0 and row.peak_rss_mb > 10 and 0 <= row.draft_share < 1
        low, high = row.speedup_interval
        assert low <= row.speedup <= high
    assert rows["plain"].passes == rows["plain"].tokens and rows["plain"].tokens_per_pass == 1 and rows["plain"].speedup == 1
    assert rows["plain"].accepted == [4 * TOKENS] and rows["plain"].nodes_per_pass == 1
    assert rows["follows"].passes < rows["follows"].tokens and rows["follows"].nodes_per_pass > 1


def test_the_room_can_be_called_by_its_name(mine):
    for _ in range(2):
        plain, follows = lithe.bench(small_model(), methods=[mine["follows"]], prompts=[[1, 2]], max_tokens=3)
        assert plain.tokens == follows.tokens == 3


def test_a_draft_that_changes_the_text_or_its_length_is_told(mine):
    rows = run([mine["lossy"], mine["short"], mine["follows"]])
    assert rows["lossy"].same < 4 and rows["lossy"].tokens == 4 * TOKENS
    assert rows["short"].same == 0 and rows["short"].tokens == 4 * (TOKENS - 1)
    assert rows["follows"].same == 4


def test_a_method_that_fails_has_no_numbers_and_harms_nobody(mine):
    rows = run([mine["raises"], mine["follows"]], repeats=2)
    failed = rows["raises"].json()
    assert failed["error"] == "ArithmeticError: planted"
    assert all(failed[name] is None for name in ("tokens", "passes", "tokens_per_s", "speedup", "same", "peak_rss_mb"))
    assert rows["plain"].tokens == rows["follows"].tokens == 4 * TOKENS and rows["follows"].same == 4


def test_ctrl_c_keeps_what_all_have_finished(mine, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(Stopped) as stop:
        run([mine["interrupts"], mine["follows"]], ledger=ledger)
    assert [row.prompts for row in stop.value.rows] == [2, 2, 2] and all(row.interrupted for row in stop.value.rows)
    assert [record.measured["tokens"] for record in ledger.read()] == [2 * TOKENS] * 3


def test_ctrl_c_before_the_first_prompt_is_done_leaves_nothing(mine):
    with pytest.raises(Stopped) as stop:
        run([f"{mine['interrupts']}:after=10"], prompts=[[9]])  # past the warm-up
    assert [row.prompts for row in stop.value.rows] == [0, 0]


def test_sampling_claims_no_sameness(mine):
    rows = run([mine["follows"]], warps=[mine["warm"]])
    assert rows["follows"].same is None and rows["follows"].of == 4 and rows["follows"].tokens == 4 * TOKENS


def test_repeats_start_afresh(mine):
    """A table that lives on would answer a prompt that it has seen answered."""
    once, thrice = (run([mine["follows"]], repeats=repeats)["follows"] for repeats in (1, 3))
    assert once.passes == thrice.passes


def test_methods_take_turns(mine, monkeypatch):
    order = []
    monkeypatch.setattr(runner, "measure", lambda made, asked: order.append(made.name) or measure(made, asked))
    run([mine["follows"]], prompts=[[1], [2], [3]])
    assert order[2:] == ["plain", "follows", "follows", "plain", "plain", "follows"]  # the first two are the warm-up


def test_what_is_not_legal_raises_before_anything_runs(mine, monkeypatch):
    monkeypatch.setattr("lithe.bench.runner.measure", lambda *_: pytest.fail("something ran"))
    for error, match, asked in [
        (UsageError, "no prompts", dict(prompts=[])),
        (UsageError, "repeats", dict(repeats=0)),
        (UsageError, "no method", dict(methods=["nosuch"])),
        (UsageError, "given twice", dict(methods=[mine["follows"]] * 2)),
        (TooLargeError, "prompt 2: ", dict(prompts=[[1], [1] * 99])),
        (UsageError, "prompt 1: .*vocabulary", dict(prompts=[[99]])),
    ]:
        with pytest.raises(error, match=match):
            run(**asked)
    monkeypatch.setattr(PlainCache, "can", frozenset())
    with pytest.raises(UnsupportedError, match="needs gather"):
        run([mine["needy"]])


def test_a_disturbed_machine_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(quiet, "listen", lambda: quiet.Quiet(900.0, 8000.0, 0.6))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert all(row.disturbed for row in run(ledger=ledger).values())
    (record,) = ledger.read()
    assert record.measured["disturbed"] and record.measured["join_max_us"] == 8000 and record.measured["join_stalled"] == 0.6


def test_the_record_says_what_was_run(mine, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    rows = run([f"{mine['follows']}:after=3"], ledger=ledger, seed=7, max_tokens=5)
    plain, record = ledger.read()
    assert record.knobs == {"after": 3} and record.method == "follows:after=3" and record.seed == 7
    assert record.settings == {"max_tokens": 5, "repeats": 1, "batch": 1, "accept": None, "ignore_eos": False, "law": "Law()"}
    assert record.measured == rows["follows"].json() and record.precision == "float64" and record.threads == 1
    assert plain.knobs == {} and plain.code_hash != record.code_hash and plain.prompts_hash == record.prompts_hash


def test_prompts_that_loop_are_left_out_of_the_second_speed(mine, monkeypatch):
    rows = run([mine["follows"]])
    looping = rows["plain"].looping
    assert 0 <= looping <= 1 and looping * 4 == int(looping * 4)
    monkeypatch.setattr("lithe.bench.stats.loops", lambda tokens: True)
    rows = run([mine["follows"]])
    assert rows["follows"].looping == 1 and rows["follows"].speedup_nonlooping is None and rows["follows"].speedup is not None
    monkeypatch.setattr("lithe.bench.stats.loops", lambda tokens: False)
    rows = run([mine["follows"]])
    assert rows["follows"].speedup_nonlooping == rows["follows"].speedup


def test_plain_decoding_may_run_often_and_its_seconds_are_the_mean(mine, monkeypatch):
    ran, whole = [], runner.measure

    def counted(plan, asked):
        found = whole(plan, asked)
        found.seconds = 1.0 + len(ran)
        ran.append(plan.name)
        return found

    monkeypatch.setattr(runner, "measure", counted)
    names = [mine["follows"], "prompt_lookup", "suffix", "token_recycling", "blend"]
    row = run(names, PROMPTS[:1], often=True)["plain"]
    took = [1.0 + at for at, name in enumerate(ran) if at > len(names) and name == "plain"]
    assert len(took) == 3  # six in two lots, and again behind each
    assert (row.passes, row.tokens) == (TOKENS, TOKENS) and row.tokens_per_s == pytest.approx(TOKENS / (sum(took) / 3))
    ran.clear()
    run(names, PROMPTS[:1])
    assert ran.count("plain") == 2  # once to warm up
