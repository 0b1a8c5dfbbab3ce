"""Serve a model over HTTP, as OpenAI's API."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

import typer

from lithe.cli._common import DEVICE, DTYPE, OFFLINE, THREADS, open_model, runs_as
from lithe.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from lithe.serve.http import Settings

GROUP = "run"
KEY, SAMPLE = "LITHE_API_KEY", "Once upon a time"


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    host: Annotated[str, typer.Option(help="the address to listen on; 0.0.0.0 for all of this machine's")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8000,
    method: Annotated[str | None, typer.Option(help="the decoding method of requests that name none, as a spec")] = None,
    allow_method: Annotated[list[str] | None, typer.Option(help="a spec that requests may name though it reaches files or "
                                                                "models of this machine; repeats")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="an adapter as NAME=FOLDER, a model of its own; repeats")] = None,
    name: Annotated[str | None, typer.Option(help="what requests call the model; by default the last part of MODEL")] = None,
    api_key: Annotated[list[str] | None, typer.Option(help=f"a key requests must show; repeats; ${KEY} is one, too")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="a host name to answer to, any: *; repeats")] = None,
    sequences: Annotated[int, typer.Option(help="most texts under way at once", min=1, max=4096)] = 64,
    queue: Annotated[int, typer.Option(help="most texts that wait; more are told 429", min=1)] = 256,
    budget: Annotated[int | None, typer.Option(help="most rows of a round; measured at the start unless given", min=1)] = None,
    cache: Annotated[int | None, typer.Option(help="most MiB of keys and values; else a share of what is free", min=1)] = None,
    timeout: Annotated[float, typer.Option(help="most seconds of a text", min=0.1)] = 600.0,
    drain: Annotated[float, typer.Option(help="after SIGTERM, seconds for what is under way", min=0)] = 30.0,
    body_limit: Annotated[int, typer.Option(help="most bytes of a request", min=1024)] = 4 << 20,
    log: Annotated[str, typer.Option(help="json lines on stderr, or off")] = "json",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="write prompts and texts to the log")] = False,
    schedule: Annotated[str | None, typer.Option(help="who gets a round's rows: a spec of its shelf")] = None,
    share: Annotated[str | None, typer.Option(help="whose common beginnings are read together: a spec of its shelf")] = None,
    dtype: DTYPE = "auto", device: DEVICE = "cpu", threads: THREADS = None, offline: OFFLINE = False,
) -> None:
    """Serve a model: /v1/chat/completions, /v1/completions, /v1/models and more, until SIGTERM or Ctrl-C."""
    if log not in ("json", "off"):
        raise UsageError(f"--log is json or off, not {log!r}")
    try:
        from lithe.serve import http
    except ImportError as problem:
        raise UnsupportedError(f"serving needs {problem.name}: pip install 'lithe[serve]'") from None
    from lithe.serve.engine import Engine

    folders = _adapters(adapter or [])
    sock = http.listen(host, port)  # before the model is loaded: what cannot be is told at once
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    _attach(target, folders)
    engine = Engine(target, method=method, schedule=schedule, share=share, budget=budget, sequences=sequences, queue=queue,
                    memory=cache and cache << 20)
    keys = (*(api_key or ()), *filter(None, [os.environ.get(KEY)]))
    settings = http.Settings(
        name=name or http.name_of(model), adapters=tuple(folders), methods=(*(allow_method or ()), *filter(None, [method])),
        keys=keys, hosts=_hosts(host, allow_host or []), body=body_limit, timeout=timeout, drain=drain, prompts=log_prompts,
        log=sys.stderr if log == "json" else None)
    _run(engine, settings, sock)


def _run(engine, settings: Settings, sock: socket) -> None:
    """Say what is served and where, and serve it with the page."""
    from lithe.serve import http, page

    service = http.Service(engine, settings)
    for label, text in _opening(engine, settings, sock.getsockname()[:2]):
        print(f"{label:<11} {text}", file=sys.stderr, flush=True)
    http.run(service, http.App(service, page.routes(service)), sock)


def _adapters(given: list[str]) -> dict[str, Path]:
    """Folders by name. Raises UsageError for what is not NAME=FOLDER, or twice there."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise UsageError(f"--adapter {text!r} is not NAME=FOLDER")
        if name in found:
            raise UsageError(f"two adapters are called {name!r}")
        found[name] = Path(folder)
    return found


def _attach(model, folders: dict[str, Path]) -> None:
    """Put adapters on the model's rack; a request that names none gets the base."""
    from lithe.tune.rack import Rack

    if folders:
        rack = Rack.of(model)
        for name, folder in folders.items():
            rack.load(folder, name=name)
        rack.use(None)


def _hosts(host: str, allowed: list[str]) -> tuple[str, ...] | None:
    """Names in a Host header that are meant: on a loopback address only its own, so that no web page reaches it by a trick."""
    from lithe.serve.http import LOOPBACK

    if "*" in allowed or (host not in LOOPBACK and not allowed):
        return None
    return (*LOOPBACK, *allowed) if host in LOOPBACK else (host, *allowed)


def _opening(engine, settings: Settings, address: tuple[str, int]) -> list[tuple[str, str]]:
    """What is served, how, and where."""
    from lithe.model.runtime import report

    url = "http://{}:{}".format(f"[{address[0]}]" if ":" in address[0] else address[0], address[1])
    facts = dict(runs_as(report(engine.model)))
    names = ", ".join((settings.name, *settings.adapters))
    stats = engine.stats()
    budget = f"{stats['budget']} rows a round, " if "budget" in stats else ""
    limits = f"{budget}{engine.sequences} texts at once, {engine.queue} may wait, context {engine.model.config.context}"
    access = f"keys known: {len(settings.keys)}" if settings.keys else "open to whoever reaches it"
    told = [("model", names), ("method", engine.method or "plain decoding"), ("precision", facts["precision"]),
            ("kernels", facts["kernels"]), ("limits", limits), ("access", access),
            ("serving", f"{url}/v1    (Ctrl-C ends it)")]
    if _knows(engine.model, SAMPLE):
        told.append(("try", f"curl {url}/v1/completions -H 'Content-Type: application/json' "
                            f"-d '{{\"model\": \"{settings.name}\", \"prompt\": \"{SAMPLE}\"}}'"))
    return told


def _knows(model, text: str) -> bool:
    """Whether a text can be a prompt: a model of few words reads others as open places."""
    return model.tokenizer is None or model.config.mask_token not in model.tokenizer.encode(text)
