"""Write several drafts of a text at once, in passes of one row. Changes the output.

Superposed Decoding (Shen et al., 2024). What the model reads is the mean of the drafts' last embeddings, weighted by how likely
each draft is: one cache, one row, however many drafts. Its one law is shared; each draft tells it apart by an n-gram law of a
corpus given its own last words. The best continuations of all drafts live on, as in beam search. The text is the best draft,
the others are kept (`drafts`, best first); as it may change until the end, it comes in one piece. `drafts=1,mix=0` is plain
decoding.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from math import exp, log

import numpy as np
import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.decode.lanes import Lanes
from lithe.decode.store import Store
from lithe.decode.whole import Move, choose
from lithe.model import corpus

CARD = Card(
    paper="Superposed Decoding: Multiple Generations from a Single Autoregressive Inference Pass",
    row=67,
    promises=("level_zero_is_identity",),
    needs=("corpus",),
)
ZERO = {"drafts": 1, "mix": 0.0}
SHARES = {2: 0.01, 3: 0.04, 4: 0.15, 5: 0.18, 6: 0.12}  # of each n-gram order in a draft's own law
UNKNOWN = -200.0  # added where no candidate was ever seen after a draft's last words


@dataclass(frozen=True, kw_only=True)
class Knobs:
    drafts: int = knob(3, "texts that are written at once", low=1, high=64)
    corpus: str = knob(corpus.FREE, "a text, .jsonl or .npy file; python: the sources of Python's own library")
    temperature: float = knob(0.06, "of the model's law", low=1e-3, high=10.0)
    candidates: int = knob(9, "tokens that each draft may go on with", low=1, high=1024)
    mix: float = knob(0.54, "weight of the n-gram law against the model's, in log", low=0.0, high=1.0)
    superpose: bool = knob(True, "read the mean of all drafts; else, the control, the best draft alone")


@dataclass(frozen=True)
class Draft:
    """What a draft has written, its score, and whether it has ended."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    ended: bool = False


class Method:
    weighs_whole_texts = True

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.model = knobs, model
        self.plain = knobs.drafts == 1 and knobs.mix == 0
        self.store = Store(knobs.corpus, model.tokenizer) if knobs.mix else None
        self.lanes = Lanes(model)
        self.drafts: dict[int, list[list[int]]] = {}  # by the sequence's number: all drafts, best first

    def start(self, sequences):
        self.drafts.clear()

    def prefill(self, sequences):
        self.lanes.sync(sequences)
        self.lanes.prefill()

    def advance(self, sequences):
        if self.plain:
            logits_BV = self.lanes.run([[s.ids[-1]] for s in sequences]).scores[:, 0]
            self.lanes.commit([1] * len(sequences))
            return [Move([choose(s, logits_V)], [""]) for s, logits_V in zip(sequences, logits_BV, strict=True)]
        return [self._write(s) for s in sequences]

    def _write(self, sequence) -> Move:
        """All drafts to their ends, in lanes of their own."""
        lanes = Lanes(self.model)
        lanes.sync([sequence])
        lanes.prefill()
        alive, ended = [Draft()], []
        for _ in range(sequence.left):
            logits_V = lanes.run([[0]], states=[self._read(sequence, alive)]).scores[0, 0]
            lanes.commit([1])
            grown = heapq.nlargest(2 * self.knobs.drafts, self._grown(sequence, alive, logits_V), key=lambda d: d.score)
            ended += [replace(draft, ended=True) for draft in grown if draft.tokens[-1] in sequence.eos]
            alive = [draft for draft in grown if draft.tokens[-1] not in sequence.eos][: self.knobs.drafts]
            if len(ended) >= self.knobs.drafts or not alive:
                break
        best = sorted([*ended, *alive], key=lambda draft: (-draft.ended, -draft.score))[: self.knobs.drafts]
        self.drafts[sequence.number] = [list(draft.tokens) for draft in best]
        tokens = self.drafts[sequence.number][0]
        return Move(tokens, ["superposed"] * len(tokens), nodes=len(tokens))

    def _read(self, sequence, alive: list[Draft]) -> Tensor:
        """The embeddings of the drafts' last tokens, as one row [1, C]."""
        read = alive if self.knobs.superpose else alive[:1]
        last = torch.tensor([[draft.tokens[-1] if draft.tokens else sequence.ids[-1]] for draft in read])
        weights = [exp(draft.score - alive[0].score) for draft in read]  # the first has the best score
        embeds_D1C = self.model.embed(last.to(self.model.device))
        share_D = torch.tensor(weights, dtype=embeds_D1C.dtype, device=embeds_D1C.device) / sum(weights)
        return torch.einsum("d,dtc->tc", share_D, embeds_D1C)

    def _grown(self, sequence, alive: list[Draft], logits_V: Tensor) -> list[Draft]:
        """Every draft with every candidate. At the start there is one draft, so its followers are the likeliest tokens."""
        top = torch.topk(logits_V.double() / self.knobs.temperature, min(self.knobs.candidates, len(logits_V)))
        chances, tokens = torch.log_softmax(top.values, -1).tolist(), top.indices.tolist()
        found, mix = [], self.knobs.mix
        for draft in alive:
            own = self._own(sequence.ids + list(draft.tokens), tokens) if draft.tokens and mix else None
            for i, (token, chance) in enumerate(zip(tokens, chances, strict=True)):
                score = draft.score + (chance if own is None else (1 - mix) * chance)
                if own is not None and any(own):
                    if not own[i]:
                        continue
                    score += mix * log(own[i])
                elif own is not None:
                    score += UNKNOWN
                found.append(Draft((*draft.tokens, token), score))
        return found

    def _own(self, ids: list[int], tokens: list[int]) -> list[float]:
        """The n-gram law at the candidates: how often each followed the last words in the corpus, over all orders."""
        assert self.store is not None
        law, corpus_ids = [0.0] * len(tokens), self.store.ids
        for order, share in SHARES.items():
            if len(ids) < order - 1:
                continue
            places = self.store.places(ids[-(order - 1) :]) + (order - 1)
            after = corpus_ids[places[places < len(corpus_ids)]]
            if len(after):
                law = [p + share * float(np.mean(after == token)) for p, token in zip(law, tokens, strict=True)]
        return law
