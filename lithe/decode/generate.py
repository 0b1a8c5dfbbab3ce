"""From prompts to steps: what the Python face, the command line and the benches call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Seq
from typing import Any

from lithe.decode.loop import Step, run
from lithe.decode.plan import DecodePlan, plan
from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.model.tokenizer import Stream
from lithe.sampling.constraint import Program, compiled, read
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence


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


def request(model: Decoder, prompt: str | Seq[int], *, law: Law | None = None, max_tokens: int = 128, seed: int = 0,
            stop: Seq[str] = (), ignore_eos: bool = False, constraint: Program | None = None) -> Sequence:
    """One sequence ready for `step`. Raises TooLargeError where the prompt does not fit into the context."""
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        if tokenizer is None:
            raise UsageError("this model has no tokenizer: give token ids instead of text")
        prompt = tokenizer.encode(prompt)
    wrong = [t for t in prompt if not 0 <= t < model.config.vocab]
    if wrong:
        raise UsageError(f"token {wrong[0]} is outside this model's vocabulary of {model.config.vocab}")
    return Sequence(prompt, limit=max_tokens, context=model.config.context, law=law, seed=seed, stops=stop,
                    constraint=constraint,
                    eos=() if ignore_eos or tokenizer is None else tokenizer.eos_ids,
                    stream=None if tokenizer is None else Stream(tokenizer, prompt))


def plain(model: Decoder) -> DecodePlan:
    """The plan every method is measured against: the same loop, nothing drafted."""
    return plan(model)
