"""Tune on long texts with fewer tokens: blocks that matter little skip attention, and the FFN keeps fewer channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UnsupportedError, UsageError
from lithe.model.adapted import Host
from lithe.model.fewer import FewerChannels, FewerTokens
from lithe.model.site import Site
from lithe.ops.blocks import informative
from lithe.train import informative as looking
from lithe.train.loss import Chunked
from lithe.train.sample import sample
from lithe.tune.targets import place

CARD = Card(paper="LeMo: Enabling LEss Token Involvement for MOre Context Fine-tuning", row=20,
            promises=("level_zero_is_identity",))
ZERO = {"keep": 1.0, "channels": 1.0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    keep: float = knob(0.5, "share of the token blocks that run through attention, on average over the layers that skip",
                       low=0.01, high=1)
    channels: float = knob(0.6, "share of the FFN's inner channels kept for the gradient", low=0.01, high=1)
    block: int = knob(64, "tokens of a block", low=1, high=65536)
    whole: float = knob(0.5, "share of the layers, the first, through whose attention all tokens run; the last is one too",
                        low=0, high=1)
    corpus: str = knob("", "text like the one trained on, from which predictors learn which blocks matter")
    rows: int = knob(16, "rows of it", low=1, high=65536)
    length: int = knob(512, "tokens of such a row", low=4, high=10_000_000)
    scores: str = knob("predicted", "who tells which blocks matter: predictors, or another pass of attention without gradient",
                       choices=("predicted", "exact"))
    hidden: int = knob(128, "inner width of a predictor", low=1, high=65536)
    steps: int = knob(300, "to fit a predictor", low=1, high=1_000_000)
    rate: float = knob(1e-3, "to fit it with", low=1e-9, high=1)
    dead: float = knob(0.9, "its hidden units are dropped that are zero for this share of the blocks", low=0.01, high=1)
    rounds: int = knob(1, "in which shares move from layers whose tokens hardly count to those whose do", low=0, high=100)
    causal: bool = knob(False, "score a block by those before it only")
    segment: int = knob(2048, "most tokens whose logits are held at once", low=1, high=10_000_000)


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        if knobs.keep < 1 and not knobs.corpus:
            raise UsageError("predictors learn from a text which blocks matter: give corpus=FILE, or keep=1")
        self.knobs = knobs
        self.recall: dict[int, float] = {}  # of the blocks that matter most, how many are found, on rows not learned from
        self.tokens: dict[int, FewerTokens] = {}
        self.old: list[tuple[Site, Any]] = []

    def loss(self, plain: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        """In segments no longer than asked for."""
        return dataclasses.replace(plain, rows=min(plain.rows, self.knobs.segment)) if isinstance(plain, Chunked) else plain

    def enter(self, model: Any) -> None:
        k, depth = self.knobs, model.config.layers
        skipping = [i for i in range(int(k.whole * depth), depth - 1) if model.config.layer(i).heads] if k.keep < 1 else []
        predictors: dict[int, Any] = {}
        shares: dict[int, float] = {}
        batches: list[Any] = []
        if skipping:
            batches = sample(model, k.corpus, rows=k.rows, length=k.length)
            seen = looking.look(model, batches, skipping, k.block)
            predictors, shares = self._learn(model, seen)
        for i, block in enumerate(model.layers):
            if i in predictors:
                told = predictors[i]
                scores = partial(_exact, k.block, k.causal) if told is None else partial(_told, told, k.causal)
                host = partial(FewerTokens, size=k.block, share=shares[i], scores=scores)
                self.tokens[i] = self._put(model, f"layers.{i}.self_attn", host)  # type: ignore[assignment]
            if k.channels < 1 and block.mlp is not None:
                if hasattr(block.mlp, "experts"):
                    raise UnsupportedError("experts read their own tokens each, so no channels suit all: take channels=1")
                self._put(model, f"layers.{i}.mlp", partial(FewerChannels, share=k.channels))
        for _ in range(k.rounds if len(self.tokens) > 1 else 0):
            self._shift(model, batches)

    def leave(self, model: Any) -> None:
        for site, module in reversed(self.old):
            site.swap(module)
        self.old, self.tokens = [], {}

    def _learn(self, model: Any, seen: dict[int, looking.Seen]) -> tuple[dict[int, Any], dict[int, float]]:
        """A predictor for each layer, learned from most rows and tried on the others; and the share of blocks that it keeps."""
        k, dice = self.knobs, torch.Generator().manual_seed(0)
        made: dict[int, Any] = {}
        shares = looking.shares(seen, k.keep)
        for i, one in seen.items():
            cut = max(1, len(one.inputs) * 3 // 4)
            most, rest = looking.Seen(one.inputs[:cut], one.scores[:cut]), looking.Seen(one.inputs[cut:], one.scores[cut:])
            if k.scores == "exact":
                made[i] = None
                continue
            made[i] = looking.fitted(most, model.config.layer(i).heads, k.block, hidden=k.hidden, steps=k.steps, rate=k.rate,
                                     dead=k.dead, dice=dice)
            self.recall[i] = looking.recall(made[i], rest if rest.inputs else most, shares[i])
        return made, shares

    def _put(self, model: Any, name: str, host: Callable[[Any], Host]) -> Host:
        """Stand below what adapters have at a site."""
        site = place(model, name)
        while isinstance(site.module, Host):
            if any(hasattr(part, "pair") for part in site.module.parts.values()):
                raise UnsupportedError("rows before the text are seen by every token: none can be left out beside them")
            site = Site(f"{site.name}.base", model)
        made = host(site.module)
        made.training = site.module.training
        self.old.append((site, site.swap(made)))
        return made

    @torch.no_grad()
    def _shift(self, model: Any, batches: list[Any], step: float = 0.1) -> None:
        """By finite differences give blocks to layers where the loss falls by them, take them elsewhere; if it helps."""
        hosts = self.tokens
        before = {i: host.share for i, host in hosts.items()}
        first = self._tried(model, batches, before)
        slopes: dict[int, float] = {}
        for i in hosts:
            at = lambda way, i=i: before | {i: min(1.0, max(0.01, before[i] + way))}
            more, less = (self._tried(model, batches, at(way)) for way in (step, -step))
            slopes[i] = (more - less) / (2 * step)
        mean = sum(slopes.values()) / len(slopes)
        largest = max(abs(slope - mean) for slope in slopes.values()) or 1.0
        moved = {i: before[i] - step * (slopes[i] - mean) / largest for i in hosts}
        legal = all(0.01 <= share <= 1 for share in moved.values())
        if not legal or self._tried(model, batches, moved) >= first:
            moved = before
        for i, host in hosts.items():
            host.share = moved[i]

    def _tried(self, model: Any, batches: list[Any], shares: dict[int, float]) -> float:
        """The loss on the text with these shares."""
        plain, total, tokens = Chunked(min(1024, self.knobs.segment)), 0.0, 0
        for i, host in self.tokens.items():
            host.share, host.training = shares[i], True  # of itself alone: dropout below stays off
        for batch in batches:
            summed, count = plain(model, batch)
            total, tokens = total + summed.item(), tokens + int(count)
        for host in self.tokens.values():
            host.training = model.training
        return total / max(1, tokens)


def _told(predictor: Any, causal: bool, x_BTC: Tensor, run: Any, attention: Any) -> Tensor:
    return informative(predictor(x_BTC), causal)


def _exact(size: int, causal: bool, x_BTC: Tensor, run: Any, attention: Any) -> Tensor:
    cache = looking.Scores(len(x_BTC), size)
    attention(x_BTC, run.over(cache))
    return informative(cache.found[attention.index], causal)
