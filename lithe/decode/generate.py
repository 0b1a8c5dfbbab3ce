"""From prompts to steps: what the Python face, the command line and the benches call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Seq
from typing import Any

from lithe.decode.loop import Step, run
from lithe.decode.plan import DecodePlan, plan
from lithe.model.decoder import Decoder
from lithe.sampling.constraint import compiled, read
from lithe.sampling.law import Law
from lithe.sampling.request import request as request


def generate(model: Decoder, prompt: str | Seq[int] | Seq[str] | Seq[Seq[int]], *, draft: str | None = None,
             tree: str | None = None, accept: str | None = None, max_tokens: int = 128, seed: int = 0,
             stop: Seq[str] = (), warps: Seq[str] = (), constrain: str | tuple[str, Any] | None = None,
             **settings: Any) -> Iterator[Step]:
    """Generate, yielding one Step a round and sequence.

    prompt: text or token ids, or a list of either for a batch. draft, tree, accept: specs of methods; None decodes plainly.
    constrain: what the text must be, as "SPEC TEXT" or a pair of both: a method of shelf `constrain`, and the schema, grammar,
    expression or list that it reads.
    settings: main knobs of warps by name, such as temperature=0.8 or top_p=0.9; what is not given is as the model's
    generation_config asks, which is greedy unless it says otherwise.

    >>> import lithe
    >>> model = lithe.load("zoo:tiny")
    >>> plain = "".join(step.text for step in lithe.generate(model, "Once upon a time", max_tokens=24))
    >>> fast = "".join(step.text for step in lithe.generate(model, "Once upon a time", max_tokens=24, draft="prompt_lookup"))
    >>> fast == plain
    True
    """
    made = plan(model, draft=draft, tree=tree, accept=accept)
    single = isinstance(prompt, str) or not len(prompt) or isinstance(prompt[0], int)  # nothing at all is an empty prompt
    batch: list = [prompt] if single else list(prompt)
    law = Law.wished(model.settings, *warps, **settings)
    asked = read(constrain) if isinstance(constrain, str) else constrain
    program = None if asked is None else compiled(model.tokenizer, *asked)
    return run(made, [request(model, p, law=law, max_tokens=max_tokens, seed=seed + i, stop=stop, constraint=program)
                      for i, p in enumerate(batch)])


def plain(model: Decoder) -> DecodePlan:
    """The plan every method is measured against: the same loop, nothing drafted."""
    return plan(model)
