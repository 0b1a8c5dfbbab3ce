"""What the endpoints share: the engine, what requests are built with, limits, metrics and the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

from starlette.requests import Request as HttpRequest

from lithe import __version__
from lithe.errors import LitheError
from lithe.serve.engine import Engine
from lithe.serve.http import _json
from lithe.serve.http._answer import Answer
from lithe.serve.http._build import Bench
from lithe.serve.http._errors import ApiError, told
from lithe.serve.http._metrics import Metrics
from lithe.serve.http._params import Facts, read
from lithe.serve.http._tokens import Tokens
from lithe.serve.request import QueueFullError, Request, Ticket

Body = TypeVar("Body")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves. Sizes in bytes, times in seconds."""

    name: str = "model"  # of the model, as requests say it
    adapters: tuple[str, ...] = ()  # names on the model's rack
    methods: tuple[str, ...] = ()  # specs that requests may name though they reach files of this machine
    keys: tuple[str, ...] = ()  # one of which requests must show; none: no key is asked for
    hosts: tuple[str, ...] | None = None  # names this server answers to; None: any
    body: int = 4 << 20
    body_seconds: float = 30.0
    timeout: float = 600.0  # of a text, from submission to its end
    quiet: float = 15.0  # between two signs of life on a stream
    drain: float = 30.0  # after SIGTERM
    choices: int = 64  # most texts of one request
    prompts: bool = False  # prompts and texts are written to the log
    log: TextIO | None = field(default_factory=lambda: sys.stderr)


class Service:
    """One engine behind HTTP."""

    def __init__(self, engine: Engine, settings: Settings):
        model = engine.model
        self.engine, self.settings, self.model = engine, settings, model
        self.bench = Bench(model=model, adapters=settings.adapters, methods=frozenset(settings.methods),
                           timeout=settings.timeout)
        self.facts = Facts(models=(settings.name, *settings.adapters), vocab=model.config.vocab, context=model.config.context,
                           choices=min(settings.choices, engine.sequences))
        self.tokens = None if model.tokenizer is None else Tokens(model.tokenizer)
        self.metrics, self.draining, self.created = Metrics(settings.name), False, int(time.time())
        self.pace = 1.0  # seconds a text took of late
        shape = f"{__version__} {model.config.to_json()} {settings.name}"
        self.fingerprint = "lithe-" + hashlib.sha256(shape.encode()).hexdigest()[:12]
        self._lock = threading.Lock()

    async def read(self, request: HttpRequest, kind: type[Body]) -> Body:
        """The request's body, checked."""
        raw = await _json.body(request, most=self.settings.body, seconds=self.settings.body_seconds)
        made: Any = read(kind, raw, self.facts)
        model = getattr(made, "model", None)
        if model is not None and model not in self.facts.models:
            raise ApiError(404, f"there is no model {model!r:.80}; there are {', '.join(self.facts.models)}", param="model",
                           code="model_not_found")
        if self.settings.prompts:
            request.state.facts["body"] = raw
        request.state.facts |= {key: value for key in ("model", "user", "metadata") if (value := getattr(made, key, None))}
        return made

    async def submit(self, requests: list[Request], *, asked: bool = False) -> Answer:
        """Queue all requests or none. Raises ApiError: 429 with Retry-After where the queue is full, 503 while going down."""
        if self.draining:
            raise ApiError(503, "the server is going down", code="shutting_down", headers={"Retry-After": "5"})
        tickets: list[Ticket] = []
        try:
            for one in requests:
                await asyncio.to_thread(partial(self._submit, one, tickets))
        except QueueFullError as problem:
            after = max(1, math.ceil(problem.after))
            raise ApiError(429, str(problem), code="queue_full", headers={"Retry-After": str(after)}) from None
        except LitheError as problem:
            raise told(problem) from None
        finally:
            if len(tickets) < len(requests):
                for ticket in tickets:
                    ticket.cancel()
        return Answer(tickets, asked=asked, watch=self.metrics.watch())

    def _submit(self, request: Request, tickets: list[Ticket]) -> None:
        """On a thread of its own, since plans and constraints take time; kept there, so that a cancelled wait loses none."""
        tickets.append(self.engine.submit(request))

    def say(self, event: str, **values: Any) -> None:
        """One line of the log, as JSON."""
        if self.settings.log is not None:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}Z"
            with self._lock:
                print(json.dumps({"time": stamp, "event": event, **values}, default=str), file=self.settings.log, flush=True)


def name_of(model: str) -> str:
    """The name requests call a model by: the last part of its folder, hub id or zoo name."""
    return Path(model.rpartition(":")[2]).name or model
