"""A model's passes beside the least time that this machine could take for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from lithe.bench.engines import MACHINE, ROWS
from lithe.bench.engines._machine import Engine
from lithe.bench.engines._rows import Ratio, bound, ratio
from lithe.bench.engines._suite import Cell
from lithe.errors import UnsupportedError
from lithe.model.decoder import Decoder
from lithe.model.linear import PackedLinear
from lithe.model.runtime import Bench

ROUNDS = 7
FAR = 256_000_000  # bytes that no cache holds


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """kind: that of most weights, whose peak counts. memory, weights: bytes a second from memory, and from where weights of
    this size lie. peak, peak_fp32: operations a second. passes: by rows, median seconds, the bound's, their ratio by round."""

    kind: str
    size: int
    memory: float
    weights: float
    peak: float
    peak_fp32: float
    passes: dict[int, tuple[float, float, Ratio]]

    def json(self) -> dict[str, Any]:
        passes = {n: {"ms": took * 1e3, "bound_ms": least * 1e3, "ratio": over.json()}
                  for n, (took, least, over) in self.passes.items()}
        return {"kind": self.kind, "bytes": self.size, "GB/s": self.weights / 1e9, "memory_GB/s": self.memory / 1e9,
                "Gop/s": self.peak / 1e9, "fp32_Gop/s": self.peak_fp32 / 1e9, "passes": passes}


def roofline(model: Decoder, rounds: int = ROUNDS) -> Roofline:
    """Measure both in turn, so that what disturbs one disturbs the other. Raises UnsupportedError without compiled layers."""
    held: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, PackedLinear):
            held[module.kind] += module.data.nbytes
    if model.fast is None or not held:
        raise UnsupportedError("a roofline is that of the compiled kernels: load as fp32, bf16, int8 or int4")
    kind, size = held.most_common(1)[0][0], held.total()
    facts = {"pass_mb": size / 1e6, "cache": str(model.dtype).removeprefix("torch.")}
    machine = Engine(threads=model.threads)
    own, limits = Cell(engine="", precision=kind), Cell(engine=MACHINE, precision=kind)
    with Bench(model) as bench:
        rows = [n for n in ROWS if n <= bench.most]
        for n in rows:
            bench.seconds(n)
        for _ in range(rounds):
            limits.add({"peak": machine.peak(kind), "peak_fp32": machine.peak("fp32"), "bandwidth": machine.bandwidth(size)})
            own.add({str(n): median(bench.seconds(n) for _ in range(3 if n <= 8 else 1)) for n in rows})
    least = {n: bound(limits.samples, facts, model.config, n, behind=bench.context) for n in rows}
    found = {n: ratio(own.samples[str(n)], least[n]) for n in rows}
    middle = {name: median(numbers) for name, numbers in limits.samples.items()}
    return Roofline(kind=kind, size=size, memory=machine.bandwidth(max(size, FAR)), weights=middle["bandwidth"],
                    peak=middle["peak"], peak_fp32=middle["peak_fp32"],
                    passes={n: (median(own.samples[str(n)]), median(least[n]), r) for n, r in found.items() if r})
