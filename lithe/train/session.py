"""A whole training on examples: what the user left open is chosen, and the reason said; then the loop runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.train import memory
from lithe.train.feed import Feed
from lithe.train.guide import Guide
from lithe.train.loop import Plan, Progress, fit
from lithe.train.loss import Chunked
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.step_law import GENTLE, step_law, tokens_of, weights_of
from lithe.train.team import ALONE, Team
from lithe.train.text import Examples

ADAPTER_RATE = 1e-3  # ours: the law says nothing of adapters
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
WARMUP, FLOOR = 0.03, 0.1  # share of the steps, and of the peak rate at the end
HELD_OUT_TOKENS = 4096  # of a held-out micro-batch
NEARLY = 1.05  # buckets hold texts of like length only, so they must be that much cheaper than packed rows


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may be asked of a training. One of epochs, steps and tokens says how long; None elsewhere: chosen."""

    epochs: int | None = None  # 1, where nothing says how long
    steps: int | None = None
    tokens: int | None = None  # rows of a pass, padding not counted
    lr: float | None = None
    batch_tokens: int | None = None  # of a step, over all processes
    micro_tokens: int | None = None  # of a micro-batch, padding included
    packing: bool | None = None
    bins: int = 30  # length buckets, where rows are not packed
    checkpointing: bool = False
    chunk: int = 1024  # tokens whose logits are held at once
    optimizer: str = "adamw"
    weight_decay: float | None = None
    pull: float = 0.0  # towards the weights of the start, of AdamW
    autocast: str | None = None  # dtype of the products: bfloat16 or float16
    seed: int = 0
    log_every: int = 10
    save_every: float = 180.0
    valid_every: int = 0

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.epochs, self.steps, self.tokens)) > 1:
            raise UsageError("epochs, steps and tokens each say how long to train: give one of them")
        if self.autocast not in (None, *AUTOCAST):
            raise UsageError(f"products cannot be in {self.autocast!r}: choose {' or '.join(AUTOCAST)}")
        if not 0 <= self.pull < float("inf"):
            raise UsageError(f"pull must not be negative: {self.pull}")
        for name in ("epochs", "steps", "tokens", "lr", "batch_tokens", "micro_tokens", "chunk", "log_every"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name.replace('_', '-')} must be positive, not {value}")


@dataclass
class Chosen:
    """Rate, tokens of a step and decay, and for each that nobody gave, why it is what it is."""

    rate: float
    tokens: int
    decay: float
    reasons: list[str] = field(default_factory=list)


@dataclass
class Session:
    """What came of it."""

    at: Progress
    chosen: Chosen
    steps: int
    bytes: dict[str, int]

    def json(self) -> dict[str, Any]:
        valid = dict(self.at.valid)
        return {"steps": self.at.step, "tokens": self.at.tokens, "loss": self.at.loss,
                "valid_loss_before": valid.get(0), "valid_loss": valid.get(self.at.step), "rate": self.chosen.rate,
                "batch_tokens": self.chosen.tokens, "chosen": self.chosen.reasons, "bytes": self.bytes,
                "seconds": self.at.seconds}


def choose(model: Decoder, examples: Examples, settings: Settings, *, adapter: bool, fresh: bool, length: int) -> Chosen:
    """What the settings leave open. length: rows of a pass, to whole numbers of which a fresh model's step is rounded."""
    total = settings.tokens or (settings.epochs or 1) * int(examples.lengths.sum())
    if settings.steps is not None:
        total = settings.steps * settings.batch_tokens if settings.batch_tokens else tokens_of(settings.steps)
    law, reasons = step_law(weights_of(model), total), []
    tokens = settings.batch_tokens
    if tokens is None:
        tokens = law.batch(length) if fresh else max(1, round(law.tokens), int(examples.lengths.max()))
        reasons.append(f"{tokens} tokens a step: the Step Law's for a run of {total:,} tokens")
    rate = settings.lr
    if rate is None and adapter:
        rate = ADAPTER_RATE
        reasons.append(f"rate {rate:g}: a usual one, since the Step Law says nothing of adapters")
    elif rate is None:
        rate = law.rate if fresh else GENTLE * law.rate
        why = "the Step Law's" if fresh else f"{GENTLE:g} of the Step Law's, which is for training from scratch,"
        reasons.append(f"rate {rate:.3g}: {why} for {weights_of(model):,} weights and {total:,} tokens")
    decay = settings.weight_decay if settings.weight_decay is not None else 0.1 if fresh else 0.0
    return Chosen(rate, tokens, decay, reasons)


def train(model: Decoder, examples: Examples, settings: Settings, *, context: int, folder: Path | None = None,
          valid: Examples | None = None, guide: Guide | None = None, adapter: bool = False, fresh: bool = False,
          identity: dict[str, Any] | None = None, team: Team = ALONE, quiet: bool = False,
          tell: Callable[[str], None] = lambda line: None,
          trackers: Iterable[Callable[[dict[str, Any]], None]] = ()) -> Session:
    """Train what requires a gradient on examples of at most `context` tokens.

    adapter, fresh: whether an adapter or a model that knows nothing yet is trained, for what is chosen. tell: gets the reasons.
    Raises what `fit` does.
    """
    guide = guide or Guide()
    if team.size > 1 and guide.speaks:
        raise UnsupportedError("this method looks at gradients or moves weights between steps, which needs one process")
    if team.size > 1 and settings.pull:
        raise UnsupportedError("the pull to the start looks at the moments of all weights, which needs one process")
    length = min(context, int(examples.lengths.max())) if settings.packing is False else context
    chosen = choose(model, examples, settings, adapter=adapter, fresh=fresh, length=length)
    make = partial(Feed, examples=examples, tokens=chosen.tokens, context=context, micro=settings.micro_tokens,
                   seed=settings.seed, rank=team.rank, processes=team.size)
    feed, reason = laid_out(make, settings, model)
    chosen.reasons += [reason] if reason else []
    for line in chosen.reasons:
        tell(line)
    steps = _steps(feed, settings)
    plan = Plan(schedule=Cosine(steps=steps, warmup=max(1, round(WARMUP * steps)), floor=FLOOR),
                autocast=AUTOCAST[settings.autocast] if settings.autocast else None,
                optimizer=Optimizer(name=settings.optimizer, lr=chosen.rate, weight_decay=chosen.decay, pull=settings.pull),
                log_every=settings.log_every, save_every=settings.save_every, check_every=settings.valid_every)
    model.recompute, loss = settings.checkpointing, guide.loss(Chunked(settings.chunk))
    model.train()
    kept = max(memory.kept(partial(lambda b: loss(model, b)[0], batch), model) for batch in _on(model.device, feed(0)))
    guide.begin(steps)
    held_out = None if valid is None else lambda: _held_out(valid, context, team)
    at = fit(model, feed, loss, plan, folder=folder, quiet=quiet, valid=held_out, guide=guide, identity=identity, team=team,
             trackers=trackers)
    model.recompute = False
    return Session(at, chosen, steps, at.held | {"activations": kept, "peak": memory.peak(team.device)})


def laid_out(make: Callable[..., Feed], settings: Settings, model: Decoder) -> tuple[Feed, str]:
    """Packed rows, or padded ones from length buckets: as the settings say, else what costs fewer operations, and why.

    Counted, not timed, so that a run that goes on chooses what it did. A packed row's attention is that of one long text.
    """
    packed, padded = make(packing=True), make(packing=False, bins=settings.bins)
    if settings.packing is not None:
        return (packed, "") if settings.packing else (padded, "")
    one, other = packed.cost(model.config), padded.cost(model.config)
    buckets = f"padded rows from {settings.bins} length buckets"
    chosen, why = (packed, "packed rows") if one <= NEARLY * other else (padded, buckets)
    return chosen, f"{why}: a token costs {one / 1e6:.1f} million operations packed, {other / 1e6:.1f} million padded"


def _steps(feed: Feed, settings: Settings) -> int:
    if settings.steps is not None:
        return settings.steps
    if settings.tokens is None:
        return feed.steps(settings.epochs or 1)
    lengths, seen = feed.examples.lengths, 0
    for step in itertools.count():
        seen += int(lengths[feed.chosen(step)].sum())
        if seen >= settings.tokens:
            return step + 1
    raise AssertionError


def _held_out(valid: Examples, context: int, team: Team) -> Iterable[dict[str, torch.Tensor]]:
    feed = Feed(examples=valid, tokens=HELD_OUT_TOKENS * team.size, context=max(context, int(valid.lengths.max())),
                rank=team.rank, processes=team.size)
    return (batch for step in range(feed.steps(1)) for batch in feed(step))


def _on(device: torch.device, batches: Iterable[dict[str, torch.Tensor]]) -> Iterable[dict[str, torch.Tensor]]:
    return ({name: value.to(device) for name, value in batch.items()} for batch in batches)


def settings_of(settings: Settings) -> dict[str, Any]:
    """The settings that decide what is learned, as plain JSON; how often a run speaks and saves does not."""
    silent = ("log_every", "save_every", "valid_every", "micro_tokens")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in silent}
