"""llama.cpp through llama-cpp-python's C interface: batches by `llama_decode`, logits only where they are asked for.

Set as is best for it: all threads, whole prompts in one batch, weights read into memory and repacked there rather than mapped,
its own half-precision cache, and flash attention on or off, whichever is faster on this model and machine.
"""

from __future__ import annotations

import ctypes
from statistics import median
from time import perf_counter
from typing import Any

import llama_cpp as api
import numpy as np

from lithe.bench.engines import BEHIND, CHUNK, ROWS
from lithe.bench.engines._rounds import text

OFF, ON = 0, 1  # of llama_flash_attn_type


@api.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    """Its log of a model's traits is no part of ours."""


class Engine:
    def __init__(self, *, folder: str, precision: str, threads: int, capacity: int, file: str, flash: bool | None = None,
                 draft: str = ""):
        """file: of the model; draft: of a smaller one of its vocabulary, if it is to draft."""
        api.llama_log_set(_quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        options = api.llama_model_default_params()
        options.use_mmap, options.n_gpu_layers = False, 0
        self.model = api.llama_model_load_from_file(file.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot read {file}")
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.threads, self.capacity, self.rows, self.length = threads, capacity, 0, 0
        self.batch = api.llama_batch_init(CHUNK, 0, 1)
        self.context: Any = None
        self.open(bool(flash))
        speeds = {} if flash is not None else self._try_both()
        self.facts: dict[str, Any] = {
            "version": f"llama-cpp-python {api.__version__}", "kernels": _features(), "threads": threads, "flash": self.flash,
            "weights_mb": api.llama_model_size(self.model) / 1e6, "cache": "float16", "flash_ms": speeds,
            "settings": f"no mmap, batches of {CHUNK}, flash attention {'on' if self.flash else 'off'}"}

        self.draft = Engine(folder="", precision=precision, threads=threads, capacity=capacity, file=draft) if draft else None

    def open(self, flash: bool) -> None:
        """A new context with flash attention on or off."""
        if self.context is not None:
            api.llama_free(self.context)
        options = api.llama_context_default_params()
        options.n_ctx = -(-self.capacity // 256) * 256
        options.n_batch = options.n_ubatch = CHUNK
        options.n_seq_max, options.n_threads, options.n_threads_batch = 1, self.threads, self.threads
        options.flash_attn_type, options.no_perf, self.flash = (ON if flash else OFF), True, flash
        if hasattr(options, "n_outputs_max"):
            options.n_outputs_max = max(ROWS)
        self.context = api.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory, self.length = api.llama_get_memory(self.context), 0

    def _try_both(self) -> dict[str, float]:
        """Milliseconds of a prompt and of short passes behind it, by flash attention; the faster one stays."""
        spent = {}
        for flash in (False, True):
            self.open(flash)
            took = []
            for _ in range(3):
                self.clear()
                before = perf_counter()
                self.run([1] * BEHIND, every=False)
                for n in (1, 1, 1, 1, 8, 16):
                    self.run([1] * n, every=True)
                    self.cut(BEHIND)
                took.append(perf_counter() - before)
            spent[flash] = median(took)
        self.open(spent[True] < spent[False])
        return {"on" if flash else "off": 1000 * took for flash, took in spent.items()}

    def clear(self) -> None:
        api.llama_memory_clear(self.memory, False)
        self.length = 0

    def run(self, ids: list[int], *, every: bool) -> None:
        batch, n = self.batch, len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self.length + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, every or i == n - 1
        batch.n_tokens = n
        if problem := api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {problem} for {n} tokens behind {self.length}")
        api.llama_synchronize(self.context)
        self.length, self.rows = self.length + n, n if every else 1

    def cut(self, length: int) -> None:
        if not api.llama_memory_seq_rm(self.memory, 0, length, -1):
            raise RuntimeError(f"llama.cpp cannot forget what lies behind {length} tokens")
        self.length = length

    def logits(self) -> Any:
        found = api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (self.rows, self.vocab)).copy()

    def decode(self, ids: list[int], count: int) -> tuple[list[int], float]:
        self.clear()
        for start in range(0, len(ids) - 1, CHUNK):
            self.run(ids[start : min(start + CHUNK, len(ids) - 1)], every=False)
        found, token, before = [], ids[-1], perf_counter()
        for _ in range(count):
            self.run([token], every=False)
            logits = ctypes.cast(api.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
            token = int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())
            found.append(token)
        return found, perf_counter() - before

    def text(self, ids: list[int], count: int, how: dict[str, Any]) -> dict[str, Any]:
        """Greedy tokens by one of its own ways: see _rounds.text."""
        return text(self, ids, count, how | {"draft": self.draft} if "draft" in how else how)


def _features() -> str:
    """Instruction sets that it says it was built with."""
    said = api.llama_print_system_info().decode()
    return " ".join(part.split("=")[0].strip() for part in said.replace(":", "|").split("|") if part.strip().endswith("= 1"))
