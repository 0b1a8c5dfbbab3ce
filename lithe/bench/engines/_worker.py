"""What runs in an engine's process: one JSON line in, one JSON line out, one task at a time. Imports no more than it must.

    {"do": "open", "engine": "lithe", "folder": ..., "precision": "int8", ...}  ->  {"ok": {...}, "peak_mb": ..., "busy": ...}

`busy` is the processor time spent since the last answer over the time that passed: a pool of threads that spins while others
have their turn would show there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from statistics import median
from time import perf_counter, process_time
from typing import Any, Protocol

from lithe.bench.engines import CHUNK, LITHE, LLAMA, MACHINE, TRANSFORMERS
from lithe.bench.memory import peak_mb

PASSES, FEW = 3, 8  # passes of a turn, of which the median counts, up to so many rows; of more rows one is enough
MODULES = {LITHE: "_lithe", TRANSFORMERS: "_transformers", LLAMA: "_llama", MACHINE: "_machine"}


class Engine(Protocol):
    """What the tasks ask of an engine. It holds one sequence of tokens, and `run` appends to it."""

    facts: dict[str, Any]

    def clear(self) -> None: ...
    def run(self, ids: list[int], *, every: bool) -> None: ...  # one pass; logits of every row, or of the last
    def cut(self, length: int) -> None: ...  # keep the first tokens
    def logits(self) -> Any: ...  # of the last pass, [rows, vocabulary] in numpy
    def decode(self, ids: list[int], count: int) -> tuple[list[int], float]: ...  # greedily; seconds without the prompt


def serve(engine: Engine | None, request: dict[str, Any]) -> Any:
    """Do a task. Raises KeyError for one that is not known."""
    words = dict(request)
    return TASKS[words.pop("do")](engine, **words)


def hold(engine: Engine, ids: list[int]) -> None:
    """Have the engine hold exactly these tokens."""
    engine.clear()
    for start in range(0, len(ids), CHUNK):
        engine.run(ids[start : start + CHUNK], every=False)


def prefill(engine: Engine, ids: list[int]) -> float:
    """Seconds to read a prompt and know the logits behind it."""
    engine.clear()
    before = perf_counter()
    for start in range(0, len(ids), CHUNK):
        engine.run(ids[start : start + CHUNK], every=False)
    return perf_counter() - before


def curve(engine: Engine, ids: list[int], behind: int, rows: list[int]) -> list[float]:
    """T(n): seconds of a pass over n rows behind the first tokens of what is held, all logits and the rollback included."""
    engine.cut(behind)
    _pass(engine, ids, 1, behind)
    return [median(_pass(engine, ids, n, behind) for _ in range(PASSES if n <= FEW else 1)) for n in rows]


def long(engine: Engine, ids: list[int]) -> float:
    """T(1) behind all that is held, which must be these tokens: reading them again would take seconds."""
    return median(_pass(engine, ids, 1, len(ids)) for _ in range(PASSES))


def _pass(engine: Engine, ids: list[int], n: int, behind: int) -> float:
    asked = ids[-n:]
    before = perf_counter()
    engine.run(asked, every=True)
    engine.cut(behind)
    return perf_counter() - before


def check(engine: Engine, ids: list[int], columns: int) -> dict[str, Any]:
    """For a comparison of engines: each row's likeliest token, its logit, and its first logits."""
    engine.clear()
    engine.run(ids, every=True)
    logits = engine.logits()
    return {"best": logits.argmax(-1).tolist(), "top": logits.max(-1).tolist(), "first": logits[:, :columns].tolist()}


def loss(engine: Engine, windows: list[list[int]], rows: int) -> list[list[float]]:
    """Nats of each token but the first of every window, by passes of so many rows."""
    import numpy as np

    found = []
    for ids in windows:
        engine.clear()
        nats: list[float] = []
        for start in range(0, len(ids) - 1, rows):
            wanted = ids[start + 1 : start + 1 + rows]
            engine.run(ids[start : start + len(wanted)], every=True)
            logits = engine.logits().astype(np.float64)
            top = logits.max(-1)
            nats += (np.log(np.exp(logits - top[:, None]).sum(-1)) + top - logits[np.arange(len(wanted)), wanted]).tolist()
        found.append(nats)
    return found


def first(engine: Engine, ids: list[int]) -> int:
    """The first token after a prompt."""
    engine.clear()
    engine.run(ids, every=False)
    return int(engine.logits()[-1].argmax())


TASKS: dict[str, Callable[..., Any]] = {
    "prefill": prefill, "curve": curve, "hold": hold, "long": long, "check": check, "loss": loss, "first": first,
    "decode": lambda engine, ids, count: engine.decode(ids, count), "text": lambda engine, **words: engine.text(**words),
    "bandwidth": lambda engine, **words: engine.bandwidth(**words), "peak": lambda engine, **words: engine.peak(**words)}


def main() -> None:
    """Serve until the pipe closes. What libraries print goes to standard error, so that the answers stay whole."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Engine | None = None
    clock, spent = perf_counter(), process_time()
    for line in sys.stdin:
        busy = (process_time() - spent) / max(perf_counter() - clock, 1e-9)
        try:
            request = json.loads(line)
            if request["do"] == "open":
                made = import_module(f"{__package__}.{MODULES[request['engine']]}")
                engine = made.Engine(**request["settings"])
                answer = engine.facts
            else:
                answer = serve(engine, request)
            said = {"ok": answer, "peak_mb": peak_mb(), "busy": busy}
        except Exception as problem:
            said = {"error": f"{type(problem).__name__}: {problem}"}
        clock, spent = perf_counter(), process_time()
        print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    main()
