"""The process: sockets, connections that stall, signals, uvicorn's own log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lithe.errors import UsageError
from lithe.serve.http._answer import dumped
from lithe.serve.http._app import App
from lithe.serve.http._errors import ApiError
from lithe.serve.http._service import Service

HEADER_SECONDS = 15.0
HEADER_BYTES = 32 << 10
CONNECTIONS = 1024


class Protocol(H11Protocol):
    """A connection. One that does not end its headers in time is closed; what is no HTTP is told so in the API's shape."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_headers(anew=False)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is on its way already
            body = dumped(ApiError(400, msg, code="invalid_http").body)
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
                       (b"connection", b"close")]
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body),
                          h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_headers(self, anew: bool = True) -> None:
        if anew or getattr(self, "deadline", None) is None:
            self._stop_waiting()
            self.deadline: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if getattr(self, "deadline", None) is not None:
            self.deadline.cancel()  # type: ignore[union-attr]
            self.deadline = None

    def _too_slow(self) -> None:
        self.deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """Uvicorn, but a signal ends it with what its app returns, and tells the app at once that no more is taken."""

    def __init__(self, service: Service, app: App):
        super().__init__(uvicorn.Config(
            app, http=Protocol, ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, h11_max_incomplete_event_size=HEADER_BYTES, limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30, timeout_graceful_shutdown=max(1, round(service.settings.drain))))
        self.service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.draining = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. Raises UsageError where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(CONNECTIONS)
    except OSError as problem:
        raise UsageError(f"cannot listen on {host}:{port}: {problem}") from None
    return made


def run(service: Service, app: App, sock: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way. A second SIGINT breaks it off."""
    logger = logging.getLogger("uvicorn")
    handler = _Handler(service.say)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    Server(service, app).run(sockets=[sock])


class _Handler(logging.Handler):
    """Uvicorn's warnings as lines of our log."""

    def __init__(self, say: Callable[..., None]):
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"trace": logging.Formatter().formatException(record.exc_info)} if record.exc_info else {}
        self.say("server", level=record.levelname.lower(), message=record.getMessage(), **trace)
