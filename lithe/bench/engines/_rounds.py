"""llama.cpp with its own drafts: its bindings' prompt lookup, and a second model as its tools use one, in one loop.

A round reads the last token and what was guessed behind it in one pass, keeps what the target would have said itself, and
forgets the rest. Greedy. Axes: N rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import perf_counter
from typing import Any

import llama_cpp as api
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from lithe.bench.engines import CHUNK

Propose = Callable[[list[int]], list[int]]  # guesses behind a text


def text(engine: Any, ids: list[int], count: int, how: dict[str, Any]) -> dict[str, Any]:
    """So many tokens behind a prompt, seconds without the prompt's pass, and passes. how: {}, {"lookup": N, "tokens": N} or
    {"draft": an engine, "tokens": N, "sure": the least probability of a guess}."""
    if "lookup" in how:
        find = LlamaPromptLookupDecoding(how["lookup"], how["tokens"])
        propose: Propose = lambda said: find(np.array(said, dtype=np.intc)).tolist()
    elif "draft" in how:
        how["draft"].clear()
        read(how["draft"], ids[:-1])
        propose = Second(how["draft"], how["tokens"], how["sure"], ids[:-1])
    else:
        propose = lambda said: []
    engine.clear()
    read(engine, ids[:-1])
    said, passes, before = list(ids), 0, perf_counter()
    while (left := count - (len(said) - len(ids))) > 0:
        guessed = propose(said)[: left - 1]
        engine.run([said[-1], *guessed], every=True)
        best = rows(engine).argmax(-1).tolist()
        right = next((n for n, token in enumerate(guessed) if token != best[n]), len(guessed))
        if right < len(guessed):
            engine.cut(engine.length - (len(guessed) - right))
        said += [*guessed[:right], best[right]]
        passes += 1
    return {"tokens": said[len(ids) :], "seconds": perf_counter() - before, "passes": passes}


class Second:
    """A chain of a smaller model's likeliest tokens, as long as it is sure of them."""

    def __init__(self, engine: Any, tokens: int, sure: float, held: list[int]):
        self.engine, self.tokens, self.sure, self.held = engine, tokens, sure, list(held)

    def __call__(self, said: list[int]) -> list[int]:
        both = zip(self.held, said[:-1], strict=False)
        known = next((n for n, (a, b) in enumerate(both) if a != b), min(len(self.held), len(said) - 1))
        self.engine.cut(known)
        found: list[int] = []
        self.held, unread = self.held[:known], said[known:]
        while len(found) < self.tokens:
            self.engine.run(unread, every=False)
            self.held += unread
            logits_V = rows(self.engine)[-1]
            token = int(logits_V.argmax())
            if 1.0 / np.exp(logits_V - logits_V[token]).sum() < self.sure:
                break
            found.append(token)
            unread = [token]
        return found


def read(engine: Any, ids: list[int]) -> None:
    for start in range(0, len(ids), CHUNK):
        engine.run(ids[start : start + CHUNK], every=False)


def rows(engine: Any) -> Any:
    """Logits [N, V] of the last pass, where they lie."""
    found = ctypes.cast(api.llama_get_logits(engine.context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(found, (engine.rows, engine.vocab))
