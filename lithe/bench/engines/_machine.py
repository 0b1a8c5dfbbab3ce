"""What the hardware could do: bytes read a second and operations a second, by small C loops on all threads."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lithe.errors import UnsupportedError
from lithe.kernels import build, library

SOURCE = Path(__file__).parent / "probe.c"
SPAN_S = 0.05  # how long a probe takes
LINE = 64  # floats that a turn of the reading loop takes


class Engine:
    """Not an engine but a contestant all the same: measured in turn with the others, as bandwidth changes by the minute."""

    def __init__(self, *, threads: int, folder: str = "", precision: str = "", capacity: int = 0, file: str = ""):
        kernels = library.load()
        if kernels is None:
            raise UnsupportedError("there is no C compiler here, so the machine's limits cannot be measured")
        self.threads = threads
        self.lib = _compiled(kernels.name)
        self.pool = ThreadPoolExecutor(threads)
        self.held: dict[int, Any] = {}
        self.facts: dict[str, Any] = {"kernels": kernels.name, "threads": threads}

    def bandwidth(self, size: int) -> float:
        """Bytes a second read from an array of `size` bytes, which is where weights of that size lie: a cache or memory."""
        if size not in self.held:
            self.held = {size: np.ones(size // 4 // (LINE * self.threads) * LINE * self.threads + 16, np.float32)}
        x = self.held[size]
        start = -x.ctypes.data % 64 // 4
        share = (len(x) - 16) // self.threads
        read = lambda times: self._all(lambda i: self.lib.probe_read(x[start + i * share :].ctypes.data, share, times))
        times = max(1, round(SPAN_S / read(1)))
        return 4.0 * share * self.threads * times / read(times)

    def peak(self, kind: str) -> float:
        """Operations a second of the instructions that products of a kind run on."""
        probe = getattr(self.lib, f"probe_{kind}")
        done: list[int] = []
        turns = max(1, round(100_000 * SPAN_S / self._all(lambda i: probe(100_000))))
        seconds = self._all(lambda i: done.append(probe(turns)))
        return sum(done) / seconds

    def _all(self, work: Any) -> float:
        """Seconds until every thread has done its share."""
        before = perf_counter()
        list(self.pool.map(work, range(self.threads)))
        return perf_counter() - before


def _compiled(variant: str) -> CDLL:
    stamp = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    lib = CDLL(str(build.library(f"probe-{variant}-{stamp}", build.VARIANTS[variant][1], (str(SOURCE),))))
    lib.probe_read.argtypes, lib.probe_read.restype = (c_void_p, c_int64, c_int32), c_float
    for probe in (lib.probe_fp32, lib.probe_bf16, lib.probe_int8, lib.probe_int4):
        probe.argtypes, probe.restype = (c_int64,), c_int64
    return lib
