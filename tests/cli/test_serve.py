"""`lithe serve` as a process: what it says at the start, that it answers, and that SIGTERM ends it well."""

import json
import os
import re
import signal
import urllib.request

import pytest

from lithe import cli


def test_it_serves_until_sigterm(process):
    child = process("serve", "zoo:tiny", "--port", "0", "--name", "small", "--method", "prompt_lookup")
    try:
        serves_until_sigterm(child)
    except BaseException:
        os.kill(child.pid, signal.SIGKILL)
        raise


def serves_until_sigterm(child):
    while b"try  " not in child.err:
        piece = os.read(child.stderr, 65536)
        assert piece, child.err
        child.err += piece
    said = child.err.decode()
    url = re.search(r"serving +(http://127\.0\.0\.1:\d+)/v1", said)[1]
    assert re.search(r"model +small\n", said) and re.search(r"method +prompt_lookup\n", said) and "256 may wait" in said
    body = json.dumps({"model": "small", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    assert json.load(urllib.request.urlopen(request, timeout=30))["usage"]["completion_tokens"] == 4
    os.kill(child.pid, signal.SIGTERM)
    assert child.end() == 0
    lines = [json.loads(line) for line in child.err.decode().splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines] == ["request", "stopped"] and "Once" not in child.err.decode().partition("try ")[2][120:]


@pytest.mark.parametrize(("words", "what"), [
    (["--adapter", "x"], "NAME=FOLDER"), (["--adapter", "x=a", "--adapter", "x=b"], "two adapters"),
    (["--host", "203.0.113.1"], "cannot listen"), (["--log", "loud"], "json or off"),
])  # fmt: skip
def test_what_cannot_be_served_is_told(words, what, capsys):
    assert cli.run(["serve", "zoo:tiny", "--port", "0", *words]) == 2
    assert what in capsys.readouterr().err
