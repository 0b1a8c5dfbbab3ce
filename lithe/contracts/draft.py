"""Drafts: whatever they propose, the output is the target's own. Axes: V vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from lithe.contracts.small import small_corpus, small_folder, small_model
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan, shapeable
from lithe.model.decoder import ALL, Decoder
from lithe.registry import Entry
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.train.fitted import FRESH

PROMPTS = ([1], [3, 4, 5, 3, 4], [7, 7, 7, 7], [2, 9, 2, 9, 2], list(range(20)))
SAMPLES = 3000


def check_same_tokens(entry: Entry) -> None:
    """Greedy output equals plain decoding: alone, in ragged batches, with ends inside a draft, up to the full context."""
    for seed in (0, 1):
        target = small_model(seed=seed)
        made = plan(target, draft=suited(entry, target))
        for limit in (1, 2, 17, 1000):
            plain = texts(plan(target), PROMPTS, limit)
            assert texts(made, PROMPTS, limit) == plain, f"a batch differs from plain decoding at limit {limit}"
            for prompt, expected in zip(PROMPTS, plain, strict=True):
                assert texts(made, [prompt], limit) == [expected], f"{prompt} differs from plain decoding at limit {limit}"
        ends = {text[len(text) // 2] for text in plain}
        assert texts(made, PROMPTS, 1000, ends) == texts(plan(target), PROMPTS, 1000, ends), "an end inside a draft is missed"


def check_same_law(entry: Entry, samples: int = SAMPLES) -> None:
    """Two sampled tokens have the target's joint law: a chi-squared test on counts, at one chance in a million."""
    target = small_model(vocab=5, context=16, scale=1.0)
    prompt, law = [1, 2, 3, 1, 2, 4, 1, 2], Law.of(temperature=0.9)
    made = plan(target, draft=suited(entry, target))
    counts_VV = torch.zeros(5, 5, dtype=torch.float64)
    for start in range(0, samples, 500):
        batch = [Sequence(prompt, limit=2, context=16, law=law, seed=start + i) for i in range(500)]
        for _ in run(made, batch):
            pass
        for sequence in batch:
            counts_VV[tuple(sequence.tokens)] += 1
    excess = chi_squared(counts_VV, joint_law(target, prompt, law))
    assert excess < 77, f"counts are off the target's law: chi-squared {excess:.0f} at 24 degrees of freedom"


def joint_law(target: Decoder, prompt: list[int], law: Law) -> torch.Tensor:
    """The exact law of the next two tokens, [V, V]."""
    vocab = target.config.vocab
    rows = torch.tensor([[*prompt, token] for token in range(vocab)])
    with torch.inference_mode():
        logits = target(rows, logits=ALL).logits[:, -2:]
    first_V = torch.softmax(law(logits[:1, 0], [prompt])[0].double(), -1)
    second_VV = torch.softmax(law(logits[:, 1], [row.tolist() for row in rows]).double(), -1)
    return first_V[:, None] * second_VV


def chi_squared(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Pearson's statistic of counts against a law of the same shape."""
    wanted = expected * counts.sum()
    return float(((counts - wanted) ** 2 / wanted.clamp_min(1e-12)).sum())


def texts(made: DecodePlan, prompts: Iterable[list[int]], limit: int, ends: Iterable[int] = ()) -> list[list[int]]:
    batch = [Sequence(p, limit=limit, context=made.model.config.context, eos=ends) for p in prompts]
    for _ in run(made, batch):
        pass
    return [sequence.tokens for sequence in batch]


def suited(entry: Entry, target: Decoder) -> str:
    """The method at its defaults; one that drafts with a second model or from a corpus is given a small one.

    One that has weights to fit is given untrained ones, as its promises hold whatever it guesses; a tree policy a draft to
    shape, and a small tree where it has so many nodes.
    """
    if entry.shelf == "tree":
        own = ",".join(f"{name}={value}" for name, value in modest(entry).items())
        return f"{':'.join(filter(None, [entry.reference, own]))} + {suited(shapeable().entry, target)}"
    vocab, knobs = target.config.vocab, []
    if "second_model" in entry.card.needs:
        knobs.append(f"model={small_folder(vocab, target.config.context, 7, 3.0 if vocab > 5 else 1.0)}")
    if "corpus" in entry.card.needs:
        knobs.append(f"corpus={small_corpus(vocab)}")
    if entry.card.trains:
        knobs.append(f"heads={FRESH}")
    return ":".join(filter(None, [entry.reference, ",".join(knobs)]))


def modest(entry: Entry, nodes: int = 8) -> dict[str, int]:
    """A small tree, where the policy lets its size be chosen."""
    return {field.name: nodes for field in dataclasses.fields(entry.module.Knobs) if field.name == "nodes"}
