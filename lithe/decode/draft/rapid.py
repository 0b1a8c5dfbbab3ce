"""Draft with only what matters of a long text in view.

RAPID (Chen et al., 2025). The prompt is cut into chunks; those most like its end, the question, by mean embeddings or by the
rare tokens they share, are kept in their order until a budget is full, and the same model, or a second one, drafts a chain on
them with a cache of its own. The target reads everything and verifies, so by default the output is the target's own; only the
rule of the same name shifts the target's law towards the draft's. Where the whole prompt fits into the budget the draft reads
it all, which gains nothing with the same model. No training.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import log1p
from random import Random

import torch

from lithe.card import Card, knob
from lithe.decode.inner import grow
from lithe.decode.lanes import Lanes
from lithe.errors import UnsupportedError
from lithe.model.load import load, vocabulary_mismatch
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence

CARD = Card(
    paper="Long-Context Inference with Retrieval-Augmented Speculative Decoding",
    row=105,
    promises=("same_tokens", "same_law"),
    emits=("chain",),
)

WAITING = 64  # rows a first pass takes along; more are read on their own first


@dataclass(frozen=True, kw_only=True)
class Knobs:
    model: str = knob("", "the model that drafts: a folder or zoo:name with the target's tokenizer; empty: the target itself")
    tokens: int = knob(10, "tokens to draft each round", low=1, high=64)
    budget: int = knob(4096, "most tokens of the prompt that the draft reads", low=1)
    chunk: int = knob(512, "tokens of a chunk", low=1)
    query: int = knob(64, "last tokens of the prompt: always read, and what chunks are compared with", low=1)
    least: float = knob(0.3, "cosine below which a chunk is left out", low=-1.0, high=1.0)
    choose: str = knob("cosine", "which chunks: by mean embedding, by shared tokens, or the controls",
                       choices=("cosine", "bm25", "first", "random"))


def bm25(chunks: list[list[int]], asked: set[int], often: float = 1.2, long: float = 0.75) -> list[float]:
    """Of each chunk the weight of the asked tokens in it (Robertson and Zaragoza, 2009, section 3)."""
    counts = [Counter(chunk) for chunk in chunks]
    mean = sum(map(len, chunks)) / len(chunks)
    holding = Counter(token for count in counts for token in count)
    weight = {token: log1p((len(chunks) - holding[token] + 0.5) / (holding[token] + 0.5)) for token in asked}

    def score(chunk, count):
        slack = often * (1 - long + long * len(chunk) / mean)
        return sum(weight[token] * count[token] * (often + 1) / (count[token] + slack) for token in asked if count[token])

    return [score(chunk, count) for chunk, count in zip(chunks, counts, strict=True)]


class Method:
    def __init__(self, knobs: Knobs, model):
        self.knobs, self.vocab, self.model = knobs, model.config.vocab, model
        if knobs.model:
            self.model = load(knobs.model, dtype=model.dtype, device=model.device, offline=model.offline)
            if reason := vocabulary_mismatch(model, self.model):
                raise UnsupportedError(f"{knobs.model} cannot draft for this model: {reason}")
        self.lanes = Lanes(self.model)
        self.shorts: dict[int, Sequence] = {}  # by sequence: the short text and what was written since

    def start(self, sequences):
        self.shorts.clear()

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1], "chain") for s in sequences]
        shorts = [self._short(s) for s in sequences]
        wanted = [min(most, self.knobs.tokens, self._reach(short)) for short, most in zip(shorts, room, strict=True)]
        live = [b for b, want in enumerate(wanted) if want > 0]
        if live:
            self.lanes.sync([shorts[b] for b in live])
            if max(len(shorts[b].ids) - n for b, n in zip(live, self.lanes.cache.lengths, strict=True)) > WAITING:
                self.lanes.prefill()
            rows = [shorts[b].ids[n:] for b, n in zip(live, self.lanes.cache.lengths, strict=True)]
            grow(self.lanes, [sequences[b] for b in live], [trees[b] for b in live], [wanted[b] for b in live], rows,
                 vocab=self.vocab, laws=True)
        return trees

    def observe(self, rounds):
        for r in rounds:
            if r.sequence.finished:
                self.shorts.pop(r.sequence.number, None)

    def _short(self, sequence) -> Sequence:
        """The short prompt and all that was written since the prompt's end."""
        if sequence.number not in self.shorts:
            prompt = sequence.ids[: sequence.prompt]
            kept = [prompt[i] for i in self.chosen(prompt)][-(self.model.config.context - 1) :]
            self.shorts[sequence.number] = Sequence(kept, limit=sequence.limit, context=self.model.config.context)
        short = self.shorts[sequence.number]
        short.ids[short.prompt :] = sequence.tokens
        return short

    def chosen(self, prompt: list[int]) -> list[int]:
        """Places of the prompt that the draft reads: the best chunks in their order, then the query."""
        size, query = self.knobs.chunk, min(self.knobs.query, len(prompt))
        if len(prompt) <= self.knobs.budget:
            return list(range(len(prompt)))
        chunks = [range(at, min(at + size, len(prompt) - query)) for at in range(0, len(prompt) - query, size)]
        left, kept = self.knobs.budget - query, []
        for i in self._ranked(prompt, chunks, len(prompt) - query):
            if len(chunks[i]) <= left:
                kept.append(i)
                left -= len(chunks[i])
        return [place for i in sorted(kept) for place in chunks[i]] + list(range(len(prompt) - query, len(prompt)))

    def _ranked(self, prompt: list[int], chunks: list[range], query: int) -> list[int]:
        """Chunks, best first, without those too unlike the query."""
        if self.knobs.choose == "random":
            return Random(repr(prompt)).sample(range(len(chunks)), len(chunks))
        if self.knobs.choose == "first":
            return list(range(len(chunks)))
        if self.knobs.choose == "bm25":
            told = bm25([[prompt[i] for i in chunk] for chunk in chunks], set(prompt[query:]))
            return sorted((i for i in range(len(chunks)) if told[i] > 0), key=lambda i: -told[i])
        known = torch.tensor(prompt, device=self.model.device).clamp(max=self.model.config.vocab - 1)
        embed_TC = torch.nn.functional.normalize(self.model.embed(known[None])[0].detach().double(), dim=-1)
        mean_C = lambda places: embed_TC[places[0] : places[-1] + 1].mean(0)
        asked_C = mean_C(range(query, len(prompt)))
        like = [float(torch.cosine_similarity(mean_C(chunk), asked_C, dim=0)) for chunk in chunks]
        return [i for i in sorted(range(len(chunks)), key=lambda i: -like[i]) if like[i] >= self.knobs.least]

    def _reach(self, short: Sequence) -> int:
        """How many tokens the drafting model can add: none where it does not know one of the text."""
        known = self.model.config.vocab
        return self.model.config.context - len(short.ids) if known >= self.vocab or max(short.ids) < known else 0
