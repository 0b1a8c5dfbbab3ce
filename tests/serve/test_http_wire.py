"""Below the API: malformed HTTP, clients that leave or stall, a full queue, the way down."""

import io
import json
import socket
import time
import urllib.error
import urllib.request

import pytest

from lithe.serve.engine import Engine
from tests.serve.http_live import Live, live, tiny

BODY = json.dumps({"model": "tiny", "prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True})
POST = (
    f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
)


def exchange(server: Live, data: bytes, *, wait: float = 5.0, close: bool = False) -> bytes:
    """What comes back for these bytes until the server closes or nothing more comes."""
    with socket.create_connection(server.address, timeout=wait) as made:
        made.sendall(data)
        if close:
            made.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while part := made.recv(65536):
                found += part
                if b"\r\n\r\n" in found and not close:
                    break
        except TimeoutError:
            pass
        return found


def alive(server: Live) -> bool:
    return json.load(urllib.request.urlopen(server.url + "/health", timeout=10))["status"] == "ok"


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 64,
        b"GARBAGE\r\n\r\n",
        b"GET /health HTTP/x.y\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        HEAD + b"Content-Length: -5\r\n\r\n{}",
        HEAD + b"Content-Length: ten\r\n\r\n{}",
        HEAD + b"Content-Length: 2, 3\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 999999999999\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models/../../etc HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=range(20),
)
def test_malformed_http_is_refused(data):
    answer = exchange(live(), data, wait=2.0, close=True)
    assert not answer or (answer.startswith(b"HTTP/1.1 4") and b'"error"' in answer), answer[:300]
    assert alive(live())


def test_pipelined_requests_are_all_answered():
    one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = exchange(live(), one * 3 + one.replace(b"Host", b"Connection: close\r\nHost"), close=True)
    assert answer.count(b"HTTP/1.1 200") == 4


def test_a_client_that_leaves_is_cancelled():
    server = live()
    assert server.idle()
    before = server.service.metrics.ends["cancelled"]
    for stream in (True, False):
        data = POST if stream else POST.replace('"stream": true', '"stream":false')
        with socket.create_connection(server.address, timeout=10) as made:
            made.sendall(data.encode())
            if stream:
                while b"data:" not in made.recv(65536):
                    pass
            else:
                time.sleep(0.2)
        assert server.idle(5.0), "what nobody waits for goes on"
    assert server.service.metrics.ends["cancelled"] == before + 2


def test_bodies_and_headers_that_stall(monkeypatch):
    from lithe.serve.http import _server

    monkeypatch.setattr(_server, "HEADER_SECONDS", 0.3)
    server = Live(Engine(tiny()), body_seconds=0.3)
    try:
        begun = time.monotonic()
        assert b"408" in exchange(server, HEAD + b"Content-Length: 50\r\n\r\n{", wait=10.0)
        with socket.create_connection(server.address, timeout=10) as made:
            made.sendall(b"POST /v1/completions HTTP/1.1\r\nHos")
            assert made.recv(100) == b"", "a connection without a request stays open"
        with socket.create_connection(server.address, timeout=10) as made:
            assert made.recv(100) == b""
        assert time.monotonic() - begun < 8
    finally:
        server.close()


def test_a_full_queue_and_the_way_down():
    log = io.StringIO()
    server = Live(Engine(tiny(), sequences=1, queue=1), drain=30.0, log=log, quiet=0.05)
    busy = POST.replace("900", "150").encode()
    streams = []
    for _ in range(2):  # one runs, one waits
        made = socket.create_connection(server.address, timeout=30)
        made.sendall(busy)
        streams.append(made.makefile("rb"))
        while b"data" not in (line := streams[-1].readline()) and b"keep-alive" not in line:
            assert line
    request = urllib.request.Request(
        server.url + "/v1/completions", data=BODY.encode(), headers={"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as full:
        urllib.request.urlopen(request, timeout=120)
    assert full.value.code == 429 and int(full.value.headers["Retry-After"]) >= 1
    assert json.load(full.value)["error"]["code"] == "queue_full"
    server.server.handle_exit(15, None)  # what SIGTERM does
    assert server.service.draining
    rest = [stream.read() for stream in streams]
    assert all(b"data: [DONE]" in text and b'"finish_reason":"length"' in text for text in rest), (
        "what was under way is finished"
    )
    assert b": keep-alive" in rest[1]
    server.thread.join(30)
    assert not server.thread.is_alive() and not server.service.engine.alive
    with pytest.raises(OSError):
        socket.create_connection(server.address, timeout=1)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["status"] for line in lines if line["event"] == "request"].count(200) == 2
    assert lines[-1]["event"] == "stopped" and "Once upon" not in log.getvalue()


def test_metrics_count_what_happened():
    server = live()
    read = lambda: dict(
        line.rsplit(" ", 1)
        for line in urllib.request.urlopen(server.url + "/metrics").read().decode().splitlines()
        if line[0] != "#"
    )
    before = read()
    body = {"model": "tiny", "prompt": "Once upon", "max_tokens": 7, "ignore_eos": True, "n": 2}
    request = urllib.request.Request(
        server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).read()
    after, label = read(), '{model_name="tiny"}'
    gone = lambda name: float(after[f"lithe:{name}"]) - float(before.get(f"lithe:{name}", 0))
    assert gone(f"generation_tokens_total{label}") == 14
    assert gone(f"time_to_first_token_seconds_count{label}") == 2
    assert gone('request_success_total{model_name="tiny",finished_reason="length"}') == 2
    assert gone('http_requests_total{model_name="tiny",path="/v1/completions",status="200"}') == 1
    assert float(after[f"lithe:num_requests_running{label}"]) == 0
    inf = after['lithe:e2e_request_latency_seconds_bucket{model_name="tiny",le="+Inf"}']
    assert inf == after[f"lithe:e2e_request_latency_seconds_count{label}"]
