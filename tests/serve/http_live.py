"""A server on a free port of this process, and its application called without a socket."""

import asyncio
import atexit
import functools
import io
import json
import threading
import time

import lithe
from lithe.serve import http
from lithe.serve.engine import Engine

STORY = "Once upon a time, there was a little"


class Live:
    """A running server. `log` holds its lines."""

    def __init__(self, engine: Engine, pages=lambda service: (), **settings):
        self.log = io.StringIO()
        given = {"name": "tiny", "drain": 5.0, "log": self.log} | settings
        self.service = http.Service(engine, http.Settings(**given))
        self.app = http.App(self.service, pages(self.service))
        self.socket = http.listen("127.0.0.1", 0)
        self.address = self.socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = http.Server(self.service, self.app)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def idle(self, seconds: float = 20.0) -> bool:
        """Whether the engine runs out of work within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = self.service.engine.stats()
            if not stats["running"] and not stats["waiting"]:
                return True
            time.sleep(0.02)
        return False


@functools.cache
def tiny():
    return lithe.load("zoo:tiny")


@functools.cache
def live() -> Live:
    """One server for all tests of a process."""
    made = Live(Engine(tiny(), sequences=16, queue=64))
    atexit.register(made.service.engine.close)  # the loop's own threads have ended by then
    return made


@functools.cache
def bare(**settings) -> http.App:
    """An application whose engine runs, without a server. For `call`."""
    engine = Engine(tiny(), sequences=8, queue=64)
    engine.start()
    atexit.register(engine.close)
    return http.App(http.Service(engine, http.Settings(**{"name": "tiny", "log": None} | settings)))


def call(app, method: str, path: str, body=None, headers=None, *, limit: float = 30.0):
    """(status, headers, bytes) of one request at the ASGI level."""
    return asyncio.run(asyncio.wait_for(acall(app, method, path, body, headers), limit))


async def acall(app, method: str, path: str, body=None, headers=None):
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent: list[dict] = []
    asked = False

    async def receive():
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message):
        sent.append(message)

    named = {"content-type": "application/json", "host": "localhost"} | (headers or {})
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("x", 1),
        "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()],
    }
    await app(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(part.get("body", b"") for part in sent[1:])
