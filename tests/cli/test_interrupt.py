"""Ctrl-C at any moment: what was done is kept, the exit code is 130, and nothing is said but that."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.bench.methods import HEAD, write
from tests.cli.folders import ROUND, spoken
from tests.cli.test_generate import SLOW

TOLD = b"lithe: interrupted\n"
SOON = 10.0  # seconds in which it must be over
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under a shell's `&`; children would have inherited it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def slow(tmp_path):
    """A draft that takes 50 ms a round, so that a test can act between two tokens."""
    return write(tmp_path, slow=SLOW)["slow"]


def ended(child) -> int:
    """Its exit code, soon."""
    start = time.monotonic()
    code = child.end()
    assert time.monotonic() - start < SOON
    return code


def test_generate_in_the_middle_of_a_text(process, slow):
    child = process("generate", str(spoken()), "a", "--max-tokens", "90", "--method", slow)
    child.read(until="€".encode())
    child.interrupt()
    assert ended(child) == 130 and child.err == TOLD
    assert (ROUND * 9)[1:].startswith(child.out.decode()) and "€" in child.out.decode()  # what was streamed stays


def test_generate_with_json_prints_no_half_document(process, slow):
    child = process("generate", str(spoken()), "a", "--max-tokens", "90", "--json", "--method", slow)
    time.sleep(0.5)
    child.interrupt()
    assert (ended(child), child.out, child.err) == (130, b"", TOLD)


def test_generate_while_the_model_is_loaded(process):
    loading = ("import lithe.model.load as l, time\n"
               "l.load_weights = lambda *a, **k: (print('loading', flush=True), time.sleep(60))")
    child = process("generate", str(spoken()), "a", before=loading)
    child.read(until=b"loading")
    child.interrupt()
    assert ended(child) == 130 and child.err == TOLD


def test_generate_while_it_waits_for_standard_input(process):
    child = process("generate", str(spoken()), "-")
    time.sleep(0.4)
    child.interrupt()
    assert ended(child) == 130 and child.err == TOLD


@pytest.mark.parametrize("part", ["propose", "observe", "start", "__init__"])
def test_generate_while_a_draft_works(process, tmp_path, part):
    """The loop is at its most delicate where a method runs: its lanes and the text must not be told apart from whole ones."""
    source = HEAD.format(what="Presses Ctrl-C") + f"""
    def start(self, sequences):
        pass

    meant = {part}

    def {part}(self, *given):
        import os, signal

        os.kill(os.getpid(), signal.SIGINT)
        return self.meant(*given)
"""
    child = process("generate", str(spoken()), "a", "--method", write(tmp_path, presses=source)["presses"])
    assert ended(child) == 130 and child.err == TOLD


@pytest.mark.parametrize("terminal", [False, True])
def test_chat_goes_on_after_an_answer_that_was_stopped(process, slow, terminal):
    child = process("chat", str(spoken()), "--max-tokens", "80", "--method", slow, terminal=terminal, TERM="dumb")
    child.read(until=b"> ")
    child.type("hi\n")
    child.read(until="€".encode())
    child.type("\x03") if terminal else child.interrupt()  # a terminal turns Ctrl-C into the signal itself
    assert "(stopped)" in child.read(until=b"tokens/s").decode()
    child.read(until=b"> ")
    child.type("/bye\n")
    assert ended(child) == 0 and b"Traceback" not in child.out + child.err


def test_chat_remembers_what_a_stopped_answer_had_said(process, slow):
    listen = ("import lithe.model.template as t, json, sys; render = t.ChatTemplate.render\n"
              "t.ChatTemplate.render = lambda self, m, **v: (print(json.dumps(m), file=sys.stderr), render(self, m, **v))[1]")
    child = process("chat", str(spoken()), "--max-tokens", "60", "--method", slow, before=listen)
    child.type("hi\n")
    child.read(until="€".encode())
    child.interrupt()
    child.read(until=b"tokens/s")
    child.type("and?\n")
    child.read(until="€".encode())
    child.interrupt()
    child.read(until=b"tokens/s")
    child.type("/bye\n")
    assert ended(child) == 0
    *_, asked = map(json.loads, child.err.decode().splitlines())
    assert [message["role"] for message in asked] == ["user", "assistant", "user"]
    assert (ROUND * 9)[1:].startswith(asked[1]["content"]) and asked[1]["content"].startswith("é€")


def test_chat_ends_where_nothing_is_being_said(process):
    child = process("chat", str(spoken()), terminal=True, TERM="dumb")
    child.read(until=b"> ")
    child.type("\x03")
    assert ended(child) == 130 and b"lithe: interrupted" in child.out and b"Traceback" not in child.out


def test_demo(process, slow, tmp_path):
    (tmp_path / "slow.toml").write_text(f"methods = ['{slow}']\n")
    child = process("demo", "--model", "zoo:tiny-draft", "--show", str(tmp_path / "slow.toml"), "--max-tokens", "20")
    child.read(until=b" slow ")
    child.interrupt()
    assert ended(child) == 130 and child.err == TOLD
    assert b"identical output" not in child.out  # no verdict on what was not finished


def test_at_any_moment(process, slow):
    """From the first instruction to the last: either it was finished, or it was interrupted and says so."""
    codes = []
    for wait in range(12):
        child = process("generate", str(spoken()), "a", "--max-tokens", "4", "--method", f"{slow}:after=1")
        time.sleep(wait * 0.02)
        child.interrupt()
        codes.append(ended(child))
        if codes[-1] == 130:
            assert child.err.endswith(TOLD) and b"Traceback" not in child.err
        else:  # the last thing it says
            assert codes[-1] in (0, -signal.SIGINT) and b"tokens/s" in child.err
    assert 130 in codes


def test_while_it_is_still_importing():
    """The one that needs a process from its start: the signal comes while torch is being imported."""
    child = subprocess.Popen([sys.executable, "-X", "importtime", "-m", "lithe", "generate", str(spoken()), "a"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in child.stderr:
        if b"torch._C" in line or b"torch._utils" in line:
            break
    child.send_signal(signal.SIGINT)
    told = b"".join(line for line in child.stderr if not line.startswith(b"import time:"))
    assert child.wait(SOON) == 130, told
    assert told == TOLD and child.stdout.read() == b""
