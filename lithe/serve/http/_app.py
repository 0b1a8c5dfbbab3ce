"""The ASGI application: routes, and the gate that every request passes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import traceback
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Message, Receive, Scope, Send

from lithe.serve.http import _about
from lithe.serve.http._answer import dumped
from lithe.serve.http._chat import chat
from lithe.serve.http._completions import completions
from lithe.serve.http._errors import ApiError
from lithe.serve.http._json import LeftError
from lithe.serve.http._service import Service

OPEN = ("/health", "/ready")  # for whoever watches over the process: no key, any host name
LEFT = 499


class App:
    """The server's application. pages: more routes, which are open to whoever reaches the server."""

    def __init__(self, service: Service, pages: Iterable[BaseRoute] = ()):
        self.service = service
        post = lambda path, work: Route(path, partial(work, service), methods=["POST"], name=path)
        get = lambda path, work: Route(path, partial(work, service), methods=["GET"], name=path)
        self.pages = list(pages)
        self.router = Router([
            get("/v1/models", _about.models), get("/v1/models/{id:path}", _about.model),
            post("/v1/completions", completions), post("/v1/chat/completions", chat),
            post("/tokenize", _about.tokenize), post("/detokenize", _about.detokenize),
            get("/health", _about.health), get("/ready", _about.ready), get("/version", _about.version),
            get("/metrics", _about.metrics), get("/openapi.json", _about.schema), *self.pages,
        ], redirect_slashes=False, default=self._missing, lifespan=self._lifespan)
        self.keys = [_digest(key) for key in service.settings.keys]

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        """The engine runs as long as the server does, and then as long as it takes to finish, but no longer than `drain`."""
        self.service.engine.start()
        try:
            yield
        finally:
            self.service.draining = True
            await asyncio.to_thread(self.service.engine.close, self.service.settings.drain)
            self.service.say("stopped")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.router(scope, receive, send)
            return
        number, begun, facts = f"req-{uuid.uuid4().hex[:16]}", perf_counter(), dict[str, Any]()
        scope["app"], scope["state"] = self, scope.get("state", {}) | {"facts": facts}
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode())]
            await send(message)

        try:
            self._check(scope)
            await self.router(scope, receive, sending)
        except LeftError:
            status = LEFT
        except asyncio.CancelledError:
            facts["error"], status = "cut off while the server went down", status or LEFT
            raise
        except Exception as problem:
            if status:  # too late for another answer: the connection breaks off instead
                self.service.say("broken", id=number, trace=traceback.format_exc())
                raise
            await self._tell(problem, number, facts)(scope, receive, sending)
        finally:
            path = self._path(scope)
            self.service.metrics.statuses[path, status] += 1
            if path not in OPEN or status >= 400:
                self.service.say("request", id=number, method=scope["method"], path=scope["path"][:200], status=status,
                                 seconds=round(perf_counter() - begun, 6), **facts)

    def _tell(self, problem: Exception, number: str, facts: dict[str, Any]) -> Response:
        """Any failure as the API's error."""
        if isinstance(problem, HTTPException):  # starlette's own: no such method
            problem = ApiError(problem.status_code, f"{problem.detail} here", code="method_not_allowed",
                               headers=problem.headers)
        if not isinstance(problem, ApiError):
            self.service.say("failed", id=number, trace="".join(traceback.format_exception(problem)))
            problem = ApiError(500, f"something went wrong within; the server's log says more under {number}",
                               code="internal_error")
        facts["error"] = problem.code if self.service.settings.prompts is False else problem.message
        return Response(dumped(problem.body), problem.status, problem.headers, "application/json")

    def _check(self, scope: Scope) -> None:
        """Is this server meant, and may the client ask? A key is compared in constant time."""
        headers = Headers(scope=scope)
        hosts = self.service.settings.hosts
        if scope["path"] in OPEN:
            return
        if hosts is not None and _host(headers.get("host", "")) not in hosts:
            raise ApiError(403, "this server does not answer to that host name; --allow-host adds names", code="wrong_host")
        if not self.keys or any(page.matches(scope)[0] is Match.FULL for page in self.pages):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        shown = _digest(key.strip() if scheme.lower() == "bearer" else "")
        if not sum(hmac.compare_digest(shown, known) for known in self.keys):  # all of them, whichever fits
            raise ApiError(401, "a key is needed: send Authorization: Bearer KEY" if not key else "this key is not known",
                           code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _path(self, scope: Scope) -> str:
        """The route's own path, so that labels are few."""
        route = scope.get("route")
        return getattr(route, "path", None) or "other"

    async def _missing(self, scope: Scope, receive: Receive, send: Send) -> None:
        paths = ", ".join(sorted(route.path for route in self.router.routes if isinstance(route, Route)))
        raise ApiError(404, f"there is nothing at {scope['path'][:200]!r}; there are {paths}", code="not_found")


def _host(header: str) -> str:
    """The name in a Host header, its port left out."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() and ":" in header else header


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
