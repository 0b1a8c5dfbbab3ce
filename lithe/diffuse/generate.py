"""From prompts to steps, for diffusion models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Seq
from typing import Any

from lithe.diffuse.loop import run
from lithe.diffuse.plan import plan
from lithe.errors import UnsupportedError
from lithe.model.decoder import Decoder
from lithe.sampling.law import Law
from lithe.sampling.request import request
from lithe.sampling.step import Step


def generate(model: Decoder, prompt: str | Seq[int] | Seq[str] | Seq[Seq[int]], *, method: str | Seq[str] = (),
             max_tokens: int = 128, seed: int = 0, stop: Seq[str] = (), warps: Seq[str] = (),
             constrain: Any = None, **settings: Any) -> Iterator[Step]:
    """Fill max_tokens places behind each prompt, yielding one Step a pass and sequence.

    method: specs of the shelves schedule, refresh, unmask, revise and stop, in one text joined by " + " or several. Places that
    lie behind an end of text are filled as well, and not shown.
    """
    if constrain is not None:
        raise UnsupportedError(f"{constrain!r:.80}: constraints read from left to right, which this model does not")
    made = plan(model, *([method] if isinstance(method, str) else method))
    single = isinstance(prompt, str) or not len(prompt) or isinstance(prompt[0], int)
    batch: list = [prompt] if single else list(prompt)
    law = read_law(model, *warps, **settings)
    return run(made, [request(model, p, law=law, max_tokens=max_tokens, seed=seed + i, stop=stop) for i, p in enumerate(batch)])


def read_law(model: Decoder, *warps: str, **settings: Any) -> Law:
    """The law asked for. Raises UnsupportedError for one that reads the text so far, which has holes here."""
    law = Law.wished(model.settings, *warps, **settings)
    if law.reads_context:
        raise UnsupportedError(f"{law} reads the text so far, and a diffusion model fills places in any order: leave it out")
    return law
