"""lithe as the suite runs it: its Decoder, its plain cache, its plain decoding loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lithe.bench.measure import measure
from lithe.decode.generate import request
from lithe.decode.plan import plan
from lithe.model.cache import PlainCache
from lithe.model.decoder import ALL, LAST, Decoder, Output
from lithe.model.express import quickest
from lithe.model.linear import PackedLinear
from lithe.model.load import load

GROUP = 32  # inputs that share a scale, as in Q8_0 and Q4_0


def open_model(folder: str | Path, precision: str, threads: int | None = None) -> Decoder:
    """A model on the fast path of a precision."""
    return load(folder, dtype=f"{precision}:{GROUP}" if precision.startswith("int") else precision, threads=threads)


class Engine:
    def __init__(self, *, folder: str, precision: str, threads: int, capacity: int, file: str = ""):
        torch.set_num_threads(threads)
        self.model = open_model(folder, precision, threads)
        self.cache = PlainCache.like(self.model, batch=1, capacity=capacity)
        self.out: Output | None = None
        self.facts: dict[str, Any] = {
            "version": f"torch {torch.__version__}", "kernels": self.model.kernels, "threads": self.model.threads,
            "weights_mb": _megabytes(self.model.buffers()) + _megabytes(self.model.parameters()),
            "pass_mb": _megabytes(m.data for m in self.model.modules() if isinstance(m, PackedLinear)),
            "cache_mb": _megabytes(t for t in (*self.cache.k, *self.cache.v) if t is not None),
            "settings": f"groups of {GROUP}" if precision.startswith("int") else "weights not rounded",
            "cache": str(self.model.dtype).removeprefix("torch.")}

    def clear(self) -> None:
        self.cache.truncate([0])

    @torch.inference_mode()
    def run(self, ids: list[int], *, every: bool) -> None:
        self.out = None  # as in decoding: what is still held gets no new pass's logits, which then go to new memory
        self.out = quickest(self.model, [ids], self.cache, ALL if every else LAST)
        self.cache.commit([len(ids)])

    def cut(self, length: int) -> None:
        self.cache.truncate([length])

    def logits(self) -> Any:
        assert self.out is not None
        return self.out.scores[0].float().numpy()

    def decode(self, ids: list[int], count: int) -> tuple[list[int], float]:
        done = measure(plan(self.model), [request(self.model, ids, max_tokens=count, ignore_eos=True)])
        return done.tokens[0], done.seconds

    def text(self, ids: list[int], count: int, how: str) -> dict[str, Any]:
        """Greedy tokens by a plan, new each time; how: its draft, "" for plain decoding. Seconds without the prompt's pass."""
        done = measure(plan(self.model, draft=how or None), [request(self.model, ids, max_tokens=count, ignore_eos=True)])
        return {"tokens": done.tokens[0], "seconds": done.seconds, "passes": done.passes}


def _megabytes(tensors: Any) -> float:
    """Of distinct storages: a tied matrix counts once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values()) / 1e6
