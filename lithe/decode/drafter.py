"""A small model made to draft for a large one: it reads text first, then what the large one writes.

FastDraft (Zafrir et al., 2024), section 3. The draft has the target's family, tokenizer and vocabulary, and few layers rather
than narrow ones, since its latency follows its depth. Pretraining is next-token prediction on text; alignment is the same on
text that the target wrote, greedily and at three temperatures, after pieces of the text and after nothing at all
(distillation of whole sequences). The target's law can count beside the tokens; the authors saw no clear gain in that.
With exits the draft learns to be left after some of its layers as well (sorted fine-tuning, S2D, Kavehzadeh et al., 2024): the
loss is the mean over exits, all under one norm and output matrix. It may be the first layers of a model that exists.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lithe import __version__
from lithe.decode.nested import exits
from lithe.decode.write import write
from lithe.errors import UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.config import Config
from lithe.model.decoder import NONE, Decoder
from lithe.model.load import load, vocabulary_mismatch
from lithe.train import fitted
from lithe.train.batches import Batch
from lithe.train.loop import Plan, fit
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.teacher import LOGITS, Teacher, Windows

TEMPERATURES = (0.0, 0.6, 0.8, 1.0)  # at which the target writes, in equal shares
UNPROMPTED = 0.2  # share of what it writes that follows nothing
WARMUP = 0.05  # share of a stage's steps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a draft is made of. start: a model that has read text already; else a fresh one of that shape reads it first.

    pretrain, align: steps of the two stages. written: tokens the target writes for the second. law: how much its law counts
    there, the tokens having the rest. keep: of a model to start from the first so many layers (0: all). exits: layers after
    which it is to be of use, as "6/9/12" (none: the last alone). A start that was cut or gets exits reads text first, too.
    """

    start: str = ""
    keep: int = 0
    exits: str = ""
    layers: int = 3
    width: int = 128
    pretrain: int = 2500
    align: int = 1000
    written: int = 500_000
    law: float = 0.0
    rate: float = 3e-3
    align_rate: float = 1e-3
    rows: int = 8
    length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.law <= 1:
            raise UsageError(f"law={self.law} is no share: give 0 to 1")
        if min(self.layers, self.width) < 1 or min(self.pretrain, self.align) < 0 or (self.align and self.written < 1):
            raise UsageError("layers, width and written must be positive, steps not negative")
        if self.keep < 0 or (self.keep and not self.start):
            raise UsageError(f"keep={self.keep}: layers are kept of a model to start from, so name one")
        if not self.start and not self.pretrain:
            raise UsageError("a fresh draft knows nothing: give it steps to pretrain, or a model to start from")


def shape(target: Config, layers: int, width: int) -> Config:
    """A small model of the target's family: its vocabulary, context, traits and head width, one matrix for both embeddings.

    Raises UsageError for a width that is not a whole number of heads.
    """
    one = target.layer(0)
    heads, rest = divmod(width, one.head_dim)
    if rest or not heads:
        raise UsageError(f"a draft of width {width} is not a whole number of the target's heads of {one.head_dim}")
    kv_heads = next(n for n in range(max(1, heads * one.kv_heads // one.heads), 0, -1) if heads % n == 0)
    ffn = -(-width * one.ffn // one.width // 32) * 32 if one.ffn else 4 * width
    return dataclasses.replace(target, layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=one.head_dim,
                               ffn=ffn, tied=True, windowed=None, experts=0, experts_per_token=0, expert_ffn=0,
                               expert_layers=None)


def begin(target: Decoder, recipe: Recipe) -> Decoder:
    """The model that the recipe starts from, in float32. Raises UnsupportedError where its tokens are not the target's."""
    if not recipe.start:
        draft = Decoder(shape(target.config, recipe.layers, recipe.width)).init(recipe.seed).to(target.device)
        draft.tokenizer, draft.token_ids, draft.settings = target.tokenizer, target.token_ids, target.settings
        return draft
    draft = load(recipe.start, dtype=torch.float32, device=target.device, fast=False, offline=target.offline)
    if reason := vocabulary_mismatch(target, draft):
        raise UnsupportedError(f"{recipe.start} cannot draft for this model: {reason}")
    return first(draft, recipe.keep) if recipe.keep else draft


def first(model: Decoder, layers: int) -> Decoder:
    """The model's first layers under its norm and output matrix. Raises UsageError where it has not so many."""
    config = model.config
    if layers > config.layers:
        raise UsageError(f"keep={layers}: the model to start from has {config.layers} layers")
    each = {name: value[:layers] for name in ("heads", "kv_heads", "ffn", "windowed", "expert_layers")
            if isinstance(value := getattr(config, name), tuple)}
    made = Decoder(config.replace(layers=layers, **each)).to(model.device, model.dtype)
    made.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in made.state_dict()})
    made.tokenizer, made.token_ids, made.settings = model.tokenizer, model.token_ids, model.settings
    made.folder, made.receipts = model.folder, model.receipts
    return made


def make(target: Decoder, ids: np.ndarray, recipe: Recipe, folder: Path, *, quiet: bool = False) -> Decoder:
    """Follow the recipe on a text of token ids; the model is written to `folder`, the run lies beside it and resumes.

    Raises what `train.loop.fit` does, and UsageError for a folder that is taken.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty: choose another folder")
    run = folder.with_name(folder.name + ".run")
    draft = begin(target, recipe)
    parent = checkpoint.fingerprint(draft.folder) if draft.folder else None
    told = {"target": fitted.identity(target), "parent": parent, "recipe": dataclasses.asdict(recipe), "text": _digest(ids)}
    stage: Callable[..., dict] = partial(_stage, draft, target, recipe=recipe, run=run, told=told, quiet=quiet)
    if recipe.exits:
        exits(recipe.exits, draft.config.layers)  # a wrong one is told before anything is read
    ready = recipe.start and not (recipe.keep or recipe.exits)
    stages = [stage("pretrain", ids, recipe.pretrain, recipe.rate, 0.0)] if recipe.pretrain and not ready else []
    if recipe.align:
        said = spoken(target, ids, recipe, run, told, quiet)
        stages.append(stage("align", said, recipe.align, recipe.align_rate, recipe.law))
    draft.receipts = [*draft.receipts, {"verb": "draft", "lithe": __version__, **told, "stages": stages}]
    checkpoint.save(draft, folder, tokenizer_from=target.folder)
    return draft


def _stage(draft: Decoder, target: Decoder, name: str, ids: np.ndarray, steps: int, rate: float, law: float, *, recipe: Recipe,
           run: Path, told: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """One stage, which goes on where it was stopped; what its receipt says."""
    prefix = () if target.tokenizer is None else target.tokenizer.prefix
    length = min(recipe.length, target.config.context, draft.config.context)
    windows = Windows(ids=ids, rows=recipe.rows, length=length, seed=recipe.seed, prefix=prefix)
    plan = Plan(schedule=Cosine(steps=steps, warmup=max(1, round(WARMUP * steps)), floor=0.1), optimizer=Optimizer(lr=rate))
    at_exits = exits(recipe.exits, draft.config.layers) if recipe.exits else ()
    draft.requires_grad_(True)
    target.requires_grad_(False)
    at = fit(draft, Teacher(target, windows, (LOGITS,) if law else ()), partial(following, law=law, at=at_exits), plan,
             folder=run / name, identity=told, quiet=quiet)
    return {"stage": name, "steps": steps, "tokens": at.tokens, "loss": at.loss, "text": _digest(ids)}


def following(draft: Any, batch: Batch, law: float = 0.0, at: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Nats of the next tokens, and by the share `law` the distance from the target's law of them; summed, and how many.

    at: layers after which the draft may be left; the mean over them.
    """
    ids_BT, layers = batch["ids_BT"], at or (draft.config.layers,)
    taps = draft(ids_BT, taps=[n - 1 for n in layers], logits=NONE).taps
    each = [_apart(draft.head(taps[n - 1][:, :-1]).float(), batch, law) for n in layers]
    return torch.stack(each).mean(), torch.tensor(ids_BT[:, 1:].numel())


def _apart(logits_BTV: Tensor, batch: Batch, law: float) -> Tensor:
    total = F.cross_entropy(logits_BTV.flatten(0, 1), batch["ids_BT"][:, 1:].flatten(), reduction="sum")
    if law:
        theirs_BTV = batch[LOGITS][:, :-1].log_softmax(-1)
        away = F.kl_div(logits_BTV.log_softmax(-1), theirs_BTV, log_target=True, reduction="sum")
        total = (1 - law) * total + law * away
    return total


def spoken(target: Decoder, ids: np.ndarray, recipe: Recipe, run: Path, told: dict[str, Any], quiet: bool) -> np.ndarray:
    """What the target writes, kept beside the run: the same run goes on with the same text."""
    known = hashlib.sha256(repr((told["target"], told["text"], recipe.written, recipe.seed)).encode()).hexdigest()[:12]
    kept = run / f"written-{known}.npy"
    if kept.is_file():
        return np.load(kept, allow_pickle=False)
    end = () if target.tokenizer is None else tuple(sorted(target.tokenizer.eos_ids))[:1]
    share = recipe.written / len(TEMPERATURES)
    one: Callable[..., np.ndarray] = partial(write, target, ids, quiet=quiet)
    parts = []
    for turn, temperature in enumerate(TEMPERATURES):
        alone = UNPROMPTED * share if end and temperature else 0  # greedily it has but one thing to say
        parts.append(one(int(share - alone), temperature=temperature, seed=recipe.seed + turn))
        if alone:
            parts.append(one(int(alone), temperature=temperature, seed=recipe.seed + turn, opening=end))
    pieces = [part[at : at + recipe.length] for part in parts for at in range(0, len(part), recipe.length)]
    order = np.random.default_rng(recipe.seed).permutation(len(pieces))  # so that what is held back is of all kinds
    found = np.concatenate([pieces[i] for i in order])
    run.mkdir(parents=True, exist_ok=True)
    np.save(aside := run / "being-written.npy", found, allow_pickle=False)
    aside.replace(kept)
    return found


def _digest(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes()).hexdigest()
