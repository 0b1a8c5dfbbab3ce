"""A sequence from what a user gives: text or ids, held against the model."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.model.tokenizer import Stream
from lithe.sampling.constraint import Program
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence


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
                    constraint=constraint, eos=() if ignore_eos or tokenizer is None else tokenizer.eos_ids,
                    stream=None if tokenizer is None else Stream(tokenizer, prompt))
