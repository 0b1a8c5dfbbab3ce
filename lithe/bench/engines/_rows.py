"""From what was measured to what can be read: speeds, and ratios with 95 % intervals over the rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from lithe.bench import stats
from lithe.bench.engines import LITHE, LLAMA, LONG, MACHINE, PROMPT, ROWS, TRANSFORMERS
from lithe.bench.engines._suite import Cell
from lithe.model.config import Config


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios: what ran side by side is compared side by side. low, high: 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def json(self) -> list[float]:
        return [float(f"{number:.4g}") for number in (self.value, self.low, self.high)]


def ratio(over: Seq[float], under: Seq[float]) -> Ratio | None:
    """Of two columns with a number a round. None where one is empty."""
    rounds = min(len(over), len(under))
    if not rounds:
        return None
    columns = [np.array([column[:rounds]], dtype=float) for column in (over, under)]
    middle = lambda a_PR, b_PR: np.median(a_PR / b_PR, axis=(-2, -1))
    value = float(middle(*columns))
    return Ratio(value, *(stats.interval(middle, *columns) or (value, value)))


def ratios(cells: Seq[Cell], config: Config) -> dict[str, Ratio]:
    """All that the cells of one precision allow, by what it is."""
    by = {cell.engine: cell.samples for cell in cells if cell.error is None}
    own, llama, hf, machine = (by.get(name, {}) for name in (LITHE, LLAMA, TRANSFORMERS, MACHINE))
    of = lambda samples, name: samples.get(name, [])
    found: dict[str, Ratio | None] = {f"tokens/s against {LLAMA}": ratio(of(llama, "decode"), of(own, "decode"))}
    for n in (1, 8, 16, 64):
        found[f"T({n}) against {LLAMA}'s"] = ratio(of(own, str(n)), of(llama, str(n)))
    for name, samples in ((LITHE, own), (LLAMA, llama), (TRANSFORMERS, hf)):
        for n in (8, 16):
            found[f"T({n})/T(1) of {name}"] = ratio(of(samples, str(n)), of(samples, "1"))
    found[f"prefill of {PROMPT} tokens, time against {LLAMA}'s"] = ratio(of(own, "prefill"), of(llama, "prefill"))
    found[f"context {LONG:,}: T(1) against {LLAMA}'s"] = ratio(of(own, "long"), of(llama, "long"))
    found[f"tokens/s against {TRANSFORMERS}' generate"] = ratio(of(hf, "decode"), of(own, "decode"))
    found[f"prefill, time against {TRANSFORMERS}'"] = ratio(of(own, "prefill"), of(hf, "prefill"))
    facts = next((cell.facts for cell in cells if cell.engine == LITHE), {})
    if own and machine.get("bandwidth"):
        for n in ROWS:
            found[f"T({n}) against the machine's bound"] = ratio(of(own, str(n)), bound(machine, facts, config, n))
    return {name: value for name, value in found.items() if value is not None}


def bound(machine: dict[str, list[float]], facts: dict[str, Any], config: Config, n: int, behind: int = 256) -> list[float]:
    """The least seconds a pass can take, a number a round: its bytes over the bandwidth, or its operations over the peak.

    Bytes are the packed weights and the cached keys and values. Products count at the peak of their kind, attention, which
    reads a cache of floats, at that of fp32.
    """
    per_row = sum(2 * _weights(config, i) for i in range(config.layers)) + 2 * config.vocab * config.width
    seen = sum(4 * layer.heads * layer.head_dim * (behind + (n + 1) / 2) for layer in map(config.layer, range(config.layers)))
    slots = 2 * sum(layer.kv_heads * layer.head_dim for layer in map(config.layer, range(config.layers)))
    size = facts["pass_mb"] * 1e6 + slots * (behind + n) * (2 if facts["cache"] in ("bfloat16", "float16") else 4)
    return [max(size / bandwidth, n * (per_row / peak + seen / peak_fp32)) for bandwidth, peak, peak_fp32
            in zip(machine["bandwidth"], machine["peak"], machine["peak_fp32"], strict=True)]


def _weights(config: Config, i: int) -> int:
    """Numbers in the matrices of a block."""
    layer = config.layer(i)
    attention = layer.width * layer.head_dim * (2 * layer.heads + 2 * layer.kv_heads)
    return attention + (3 if config.gated else 2) * layer.width * layer.ffn


def speeds(cell: Cell) -> dict[str, float]:
    """Medians over the rounds, in the units that are read."""
    units: dict[str, tuple[str, Callable[[float], float]]] = {
        "decode": ("tokens/s", lambda s: 1 / s), "prefill": ("prefill tokens/s", lambda s: PROMPT / s),
        "long": (f"T(1) at {LONG:,} ms", lambda s: 1000 * s), "start": ("start s", float),
        "import_torch": ("import torch s", float), "bandwidth": ("GB/s", lambda b: b / 1e9),
        "peak": ("Gop/s", lambda o: o / 1e9), "peak_fp32": ("fp32 Gop/s", lambda o: o / 1e9)}
    units |= {str(n): (f"T({n}) ms", lambda s: 1000 * s) for n in ROWS}
    found = {units[name][0]: units[name][1](median(numbers)) for name, numbers in cell.samples.items() if name in units}
    if cell.samples.get("loss"):
        found["loss"] = sum(cell.samples["loss"]) / cell.facts["loss_tokens"]
    return found | ({"peak MB": cell.facts["peak_mb"]} if "peak_mb" in cell.facts else {})
