"""How fast a model's passes are here, and on how many threads: measured once for each model's shape and machine, and kept.

T(n), the seconds of a pass of n rows behind a context, is what verifying n drafted tokens costs. Nothing is ever measured
unasked, and what is chosen changes no result: threads, of which no bit depends. Precision, and the kernels' variant, whose last
bits differ from another's, are never chosen by a stopwatch.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from lithe import __version__
from lithe.kernels import library
from lithe.model import curve
from lithe.model.cache import PlainCache
from lithe.model.curve import CostCurve, Runtime
from lithe.model.decoder import Decoder
from lithe.model.express import quickest
from lithe.model.machine import kernels, machine, usable_cores
from lithe.model.precision import EXACT, precision

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
TRIED = (1, 8)  # rows by which thread counts are compared
CONTEXT = 256  # tokens before the rows
MOST, LEAST, BUDGET_S = 25, 3, 1.2  # rounds over all rows, and the time after which LEAST of them are enough
SHARE = 0.75  # of the cores they could use that threads must have got: they wait spinning, so that less was taken from them
BLOCKS, WAKING, PASSES = 6, 4, 4  # of each number of threads: times it is its turn, passes before and while it is measured

Progress = Callable[[int, int], None]
_reason, _lowered = "", (0, 0)  # why there are so many threads; from how many to how many they were lowered


def cost_curve(model: Decoder, *, progress: Progress | None = None) -> CostCurve:
    """T(n) of a model on its present threads: as stored, or measured now (a second for a small model, some for a large one)."""
    known, threads = stored(model), model.threads
    if known is not None and threads in known.curves:
        return known.curves[threads]
    known = known or Runtime(threads=threads, tried={})
    known.curves[threads] = _curve(model, threads, progress)
    curve.keep(known, _key(model))
    return known.curves[threads]


def measure(model: Decoder, *, progress: Progress | None = None) -> Runtime:
    """Measure anew: which number of threads is best, up to those allowed, and T(n) with it. `load` uses the first from then on.

    Fewer than all are chosen only where even the slow quartile of their times is below the quick one of all threads, and where
    nothing else took their cores meanwhile: else nothing is chosen, and that is said.
    """
    allowed = _allowed()
    counts = sorted({1 << i for i in range(allowed.bit_length()) if 1 << i < allowed} | {allowed})
    times = {count: [] for count in counts} if model.device.type == "cpu" and len(counts) > 1 else {}  # type: ignore[var-annotated]
    disturbed = False
    with Bench(model) as bench:
        for block in range(BLOCKS if times else 0):
            if block >= LEAST and bench.spent > BUDGET_S:
                break
            for count in times:  # in blocks, the first passes unmeasured: a thread that was asleep may wake on a core in use
                with _on(model, count):
                    for _ in range(WAKING):
                        bench.seconds(1)
                    spent, busy = bench.spent, bench.busy
                    times[count] += [[bench.seconds(n) for n in TRIED if n <= bench.most] for _ in range(PASSES)]
                wanted = SHARE * min(count, usable_cores()) * (bench.spent - spent)
                disturbed |= bench.busy - busy < wanted
    if disturbed:
        times = {}
        print("lithe: threads were not compared, as something else used the processor; measure again when it is quiet",
              file=sys.stderr)
    tried = {count: np.quantile(np.sum(found, axis=1), (0.25, 0.5, 0.75)) for count, found in times.items()}
    best = min((count for count in tried if count == allowed or tried[count][2] < tried[allowed][0]),
               key=lambda count: tried[count][1], default=allowed)
    firsts = {count: tuple(np.median(found, axis=0)[[0, -1]].tolist()) for count, found in times.items()}
    made = Runtime(threads=best, tried=firsts, curves={best: _curve(model, best, progress)})
    curve.keep(made, _key(model))
    return made


def stored(model: Decoder) -> Runtime | None:
    """What was measured of this model on this machine before. A file that cannot be used is told of and left aside."""
    return curve.read(_key(model))


def take_threads(model: Decoder, asked: int | None = None) -> None:
    """Give the kernels their threads: those asked for, else those measured best, else all of PyTorch's.

    Threads are the process's: of several models the one that wants most decides.
    """
    global _reason, _lowered
    allowed = _allowed()
    known = stored(model) if allowed > 1 and asked is None and "LITHE_THREADS" not in os.environ else None
    if known is not None and known.tried:
        torch.set_num_threads(known.threads)
        _lowered = (allowed, known.threads)
        _reason = "measured: T(1) is " + ", ".join(f"{times[0] * 1e3:.2f} ms on {n}" for n, times in known.tried.items())
    else:
        _reason, _lowered = "asked for" if asked is not None else "", (0, 0) if asked is not None else _lowered
    library.take_threads()


def why_threads() -> str:
    """Why the kernels run on as many threads as they do."""
    for name in ("LITHE_THREADS", "OMP_NUM_THREADS"):
        if name in os.environ and not (_reason and name[0] == "O"):
            return f"{name}={os.environ[name]} asks for it"
    return _reason or "as many as PyTorch takes"


def report(model: Decoder) -> dict[str, Any]:
    """What runs this model and why, as plain values. `curve` is None where it was not measured."""
    with torch.inference_mode():  # blocks are looked at when they run
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), cache=PlainCache.like(model, capacity=1))
    known, layers = stored(model), model.config.layers
    found = known.curves.get(model.threads) if known else None
    why: dict[int, str] = model.fast.why if model.fast is not None else {}
    return {"precision": precision(model), "kernels": model.kernels, "why_kernels": _why_kernels(model),
            "threads": model.threads, "why_threads": why_threads() + _gave_way(),
            "layers": layers, "compiled": 0 if model.kernels == "torch" else layers - len(why), "why_not": why,
            "best_threads": known.threads if known and known.tried else None,
            "curve": None if found is None else asdict(found) | {
                "T1_ms": found.seconds(1) * 1e3, "T8/T1": found.ratio(8), "T16/T1": found.ratio(16), "noisy": found.noisy}}


def _gave_way() -> str:
    """Whether calls ran on one thread as the others were kept from their cores."""
    return f"; {count} calls ran on one, as something else used the cores" if (count := library.alone()) else ""


def _why_kernels(model: Decoder) -> str:
    if model.device.type != "cpu" or model.dtype not in EXACT:
        return f"compiled layers run on a CPU in float32 or bfloat16, this model on {model.device} in {model.dtype}"
    found = kernels()
    return found["why"] if model.fast is not None or found["variant"] == "torch" else "it was loaded to run without"


class Bench:
    """Passes of a model behind a context of random tokens."""

    def __init__(self, model: Decoder):
        self.model, window = model, model.config.context
        self.context = min(CONTEXT, max(window - ROWS[-1], window // 2))
        self.most = min(ROWS[-1], window - self.context)
        self.spent = self.busy = 0.0  # seconds of the clock, and of all threads

    def __enter__(self) -> Bench:
        self.mode = torch.inference_mode()
        self.mode.__enter__()
        dice = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.model.config.vocab, (1, self.context + self.most), generator=dice).to(self.model.device)
        self.cache = PlainCache.like(self.model, capacity=self.context + self.most)
        if self.context:
            self.model(ids[:, : self.context], cache=self.cache)
            self.cache.commit([self.context])
        self.ids = ids[0, self.context :].tolist()
        return self

    def __exit__(self, *error: object) -> None:
        self.mode.__exit__(*error)

    def seconds(self, rows: int) -> float:
        """Of one pass with all its logits; nothing is committed, so the next one is behind the same context."""
        start, busy = perf_counter(), process_time()
        quickest(self.model, [self.ids[:rows]], self.cache)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        took = perf_counter() - start
        self.spent += took
        self.busy += process_time() - busy
        return took


def _curve(model: Decoder, threads: int, progress: Progress | None) -> CostCurve:
    """Rounds over all row counts, so that whatever disturbs the machine disturbs all of them; up and down in turn, as one row
    behind 64 takes a quarter longer than behind one."""
    with Bench(model) as bench, _on(model, threads):
        rows = [n for n in ROWS if n <= bench.most]
        for n in rows:
            bench.seconds(n)  # unmeasured: buffers grow, threads wake
        bench.spent = 0.0
        found: list[list[float]] = []
        while len(found) < MOST and (len(found) < LEAST or bench.spent < BUDGET_S):
            took = {n: bench.seconds(n) for n in (rows if len(found) % 2 else rows[::-1])}
            found.append([took[n] for n in rows])
            if progress is not None:
                progress(len(found), MOST)
    low, middle, high = np.quantile(found, (0.25, 0.5, 0.75), axis=0)
    return CostCurve(rows=tuple(rows), medians=tuple(middle.tolist()), spreads=tuple((high - low).tolist()),
                     context=bench.context, threads=threads)


@contextmanager
def _on(model: Decoder, threads: int) -> Iterator[None]:
    """Run passes on another number of threads, for a while."""
    if threads == model.threads:
        yield
    elif model.kernels == "torch":
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
    else:
        said = os.environ.get("LITHE_THREADS")
        os.environ["LITHE_THREADS"] = str(threads)  # which the kernels ask at every pass
        try:
            yield
        finally:
            os.environ.pop("LITHE_THREADS") if said is None else os.environ.update(LITHE_THREADS=said)


def _allowed() -> int:
    """Threads that may be taken: what PyTorch was given, before fewer were chosen here."""
    now = library.threads()
    return _lowered[0] if now == _lowered[1] else now


def _key(model: Decoder) -> dict[str, Any]:
    """All that passes' times depend on. A model's weights do not count, only their shapes and kinds and what stands where."""
    shape = json.dumps(model.config.to_json(), sort_keys=True) + repr(model)
    compiled = library.load() if model.fast is not None else None
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    return {"model": hashlib.sha256(shape.encode()).hexdigest(), "precision": precision(model), "dtype": str(model.dtype),
            "device": device, "threads": _allowed(), "cores": usable_cores(), "machine": machine(), "lithe": __version__,
            "torch": torch.__version__,
            "kernels": Path(compiled.lib._name).stem if compiled else "torch"}  # a name that hashes sources, compiler and flags
