"""What the suite measures, each a function of a model that returns numbers. Axes: B sequences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch

from lithe import registry
from lithe.decode.generate import request as sequence_of
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.decoder import Decoder
from lithe.model.paged import PagedCache, Pages, Table
from lithe.serve.engine import Engine
from lithe.serve.request import Request, Ticket

PREFIX, CLIENTS, TOKENS = 1500, 16, 64


def overhead(model: Decoder, *, rounds: int = 9, tokens: int = 128) -> dict[str, Any]:
    """Seconds a token of one request through the engine, over those of the bare loop: in turn, medians."""
    engine, made = Engine(model, budget=256, sequences=4, sharing=True), plan(model)
    bare: list[float] = []
    served: list[float] = []
    for number in range(rounds + 1):
        ids = text(model, 32, number)
        begun = perf_counter()
        sequence = sequence_of(model, ids, max_tokens=tokens, ignore_eos=True)
        for _ in run(made, [sequence]):
            pass
        middle = perf_counter()
        ticket = engine.submit(Request(prompt=tuple(ids), max_tokens=tokens, ignore_eos=True))
        while engine.step():
            pass
        end = perf_counter()
        assert [token for event in ticket.events() for token in event.tokens] == sequence.tokens
        if number:  # the first warms up
            bare.append((middle - begun) / tokens)
            served.append((end - middle) / tokens)
    ratios = [b / a for a, b in zip(bare, served, strict=True)]
    return {"bare_ms": 1e3 * statistics.median(bare), "engine_ms": 1e3 * statistics.median(served),
            "ratio": statistics.median(ratios), "ratios": ratios}


def stalls(model: Decoder, *, between: float = 0.1, decoding: int = 4, prompts: int = 3, every: int = 30) -> dict[str, Any]:
    """Gaps between the tokens of those that decode while long prompts arrive, in chunks and whole."""
    found: dict[str, Any] = {}
    for name, chunking in (("chunked", True), ("whole", False)):
        engine = Engine(model, between=between, sequences=decoding + prompts, sharing=False, chunking=chunking)
        begun, arrived = perf_counter(), list[Clock]()
        steady = [Clock(ask(engine, text(model, 24, b), every * (prompts + 1))) for b in range(decoding)]
        while engine.step():
            if len(arrived) < prompts and len(steady[0].times) >= every * (len(arrived) + 1):
                arrived.append(Clock(ask(engine, text(model, PREFIX, 100 + len(arrived)), 1)))
        gaps = sorted(b - a for clock in steady for a, b in pairwise(clock.times))
        found[name] = {"budget": engine.budget, "p50_ms": 1e3 * at(gaps, 0.5), "p99_ms": 1e3 * at(gaps, 0.99),
                       "most_ms": 1e3 * gaps[-1], "gaps": len(gaps), "seconds": perf_counter() - begun,
                       "first_token_s": statistics.median(clock.times[0] - clock.begun for clock in arrived)}
    found["p99_ratio"] = found["chunked"]["p99_ms"] / found["whole"]["p99_ms"]
    return found


def prefix(model: Decoder, *, modes: tuple[str, ...] = ("shared", "unshared")) -> dict[str, Any]:
    """Requests with one long beginning at once: all that is shared, and nothing."""
    found: dict[str, Any] = {}
    start, outputs = text(model, PREFIX, 7), {}
    for mode in modes:
        engine = Engine(model, budget=256, sequences=CLIENTS, sharing=mode == "shared")
        begun = perf_counter()
        tickets = [ask(engine, start + text(model, 4, b), TOKENS) for b in range(CLIENTS)]
        first = None  # when all decode, if they ever do at once
        while engine.step():
            if first is None and len(engine.running) == CLIENTS and not any(job.left for job in engine.running):
                first = perf_counter()
        end = perf_counter()
        outputs[mode] = [[token for event in ticket.events() for token in event.tokens] for ticket in tickets]
        found[mode] = {"seconds": end - begun, "tokens_per_s": CLIENTS * TOKENS / (end - begun),
                       "decode_s": first and end - first, "rows": engine.counts["rows"]}
    if len(modes) == 2:
        found["same"] = outputs[modes[0]] == outputs[modes[1]]
        found["ratio"] = found[modes[1]]["seconds"] / found[modes[0]]["seconds"]
    return found


@torch.inference_mode()
def together(model: Decoder, *, length: int = 4096, rounds: int = 5) -> dict[str, Any]:
    """One decoding pass of many sequences behind one prefix: its keys read together, and by each; on the same pages."""
    store = Pages.like(model, pages=-(-length // 64) + 2 * CLIENTS + 1, size=64)
    base, ids = Table(), text(model, length, 3)
    for at_ in range(0, length, 256):
        cache = PagedCache(store, [base])
        model(torch.tensor(ids[at_ : at_ + 256])[:, None], counts=[256], cache=cache, logits="none")
        cache.commit([256])
    tables = [store.fork(base) for _ in range(CLIENTS)]
    rows = torch.tensor(text(model, CLIENTS, 5))[:, None]
    ways = {name: entry.module.Method(entry.knobs()).group for name, entry in
            (("together" if entry.card.row else "each", entry) for entry in registry.entries("attention", "share"))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    given = {}
    for _ in range(rounds + 1):
        for name, share in ways.items():
            begun = perf_counter()
            given[name] = model(rows, counts=[1] * CLIENTS, cache=PagedCache(store, tables, share)).scores
            seconds[name].append(perf_counter() - begun)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {"prefix": length, "sequences": CLIENTS, "pages": store.count - len(store.free),
            "same": bool(torch.equal(given["together"], given["each"])),
            "ms": {name: 1e3 * time for name, time in medians.items()}, "ratio": medians["each"] / medians["together"]}


def through(model: Decoder, *, tokens: int = TOKENS) -> dict[str, Any]:
    """Tokens a second of so many requests at once, and of one after another."""
    engine = Engine(model, budget=256, sequences=CLIENTS)
    found = {}
    for name, at_once in (("one", 1), ("many", CLIENTS)):
        begun, tickets = perf_counter(), list[Ticket]()
        for b in range(0, CLIENTS, at_once):
            tickets += [ask(engine, text(model, 48, 50 + c), tokens) for c in range(b, b + at_once)]
            while engine.step():
                pass
        seconds = perf_counter() - begun
        found[name] = {"tokens_per_s": CLIENTS * tokens / seconds, "seconds": seconds}
        if engine.room.tree:
            engine.room.tree.clear()
    return found | {"ratio": found["many"]["tokens_per_s"] / found["one"]["tokens_per_s"]}


PARTS: dict[str, Callable[[Decoder], dict[str, Any]]] = {
    "overhead": overhead, "stalls": stalls, "prefix": prefix, "together": together, "through": through}


class Clock:
    """When a ticket's tokens came."""

    def __init__(self, ticket: Ticket):
        self.begun, self.times = perf_counter(), list[float]()
        ticket.listen(lambda event: self.times.extend([perf_counter()] * len(event.tokens)))


def ask(engine: Engine, ids: list[int], tokens: int) -> Ticket:
    return engine.submit(Request(prompt=tuple(ids), max_tokens=tokens, ignore_eos=True))


def text(model: Decoder, tokens: int, seed: int) -> list[int]:
    """Random token ids."""
    return torch.randint(5, model.config.vocab, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def at(ordered: list[float], share: float) -> float:
    """The value below which that share of the others lies."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def needed(name: str) -> int:
    """The context that a part needs."""
    return {"stalls": PREFIX + TOKENS, "prefix": PREFIX + 2 * TOKENS, "together": 4096 + TOKENS}.get(name, 0)


def chosen(model: Decoder, names: list[str]) -> Iterator[str]:
    """The parts asked for, or all whose context the model has."""
    yield from (names or [name for name in PARTS if needed(name) <= model.config.context])
