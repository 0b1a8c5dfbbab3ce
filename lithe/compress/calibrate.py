"""The calibration text, what an act may look at while it is a block's turn, and how much each block changes its input.

Axes: B rows, T tokens, C width, N outputs, K inputs, U units.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.compress.groups import Group
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model.decoder import NONE, Decoder
from lithe.train import rows, stats
from lithe.train.batches import Batch
from lithe.train.loss import next_token
from lithe.train.stats import Inputs

LEAST = 16  # tokens of a calibration text

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of the states before and after a block [M, C]
    "angular": lambda x, y: torch.arccos(F.cosine_similarity(x, y, dim=-1).clamp(-1, 1)) / torch.pi,
    "cosine": lambda x, y: 1 - F.cosine_similarity(x, y, dim=-1),
    "mse": lambda x, y: (x - y).square().mean(-1),
    "mae": lambda x, y: (x - y).abs().mean(-1),
}


@dataclass(frozen=True)
class Calibration:
    """Batches of whole rows, without padding, and the digest of their tokens."""

    batches: list[Batch]

    @property
    def tokens(self) -> int:
        return sum(batch["ids_BT"].numel() for batch in self.batches)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.batches[0]["ids_BT"].shape[1]

    @property
    def digest(self) -> str:
        """SHA-256, 16 digits."""
        whole = hashlib.sha256()
        for batch in self.batches:
            whole.update(repr(tuple(batch["ids_BT"].shape)).encode() + batch["ids_BT"].numpy().tobytes())
        return whole.hexdigest()[:16]

    def first(self, tokens: int) -> list[Batch]:
        """Batches of so many tokens, rows whole; 0: all."""
        taken: list[Batch] = []
        for batch in self.batches:
            have = sum(b["ids_BT"].numel() for b in taken)
            if tokens and have >= tokens:
                break
            rows_left = -(-(tokens - have) // batch["ids_BT"].shape[1]) if tokens else len(batch["ids_BT"])
            taken.append({name: value[:rows_left] for name, value in batch.items()})
        return taken


def of_ids(ids: Sequence[int] | Tensor, *, length: int, rows_each: int = 4, tokens: int = 0) -> Calibration:
    """Rows of `length` tokens of one long text, `rows_each` of them a batch; what does not fill a row is left out."""
    flat = torch.as_tensor(ids, dtype=torch.int64)
    if len(flat) < LEAST:
        raise FormatError(f"the calibration text has {len(flat)} tokens; give {LEAST} at least, better thousands")
    length = min(length, len(flat))
    count = len(flat) // length if not tokens else max(1, min(len(flat), tokens) // length)
    ids_BT = flat[: count * length].view(count, length)
    return Calibration([{"ids_BT": part.contiguous()} for part in ids_BT.split(rows_each)])


def read(path: str | Path, model: Decoder, *, length: int, tokens: int, seed: int = 0) -> Calibration:
    """The texts of a .txt or .jsonl file (either .gz too), in an order drawn from `seed`, one after another.

    Lines of .jsonl hold their text as training data do (see train/rows.py). Raises FormatError for what cannot be used.
    """
    if model.tokenizer is None:
        raise UsageError("this model has no tokenizer, so it cannot read a calibration text")
    texts = _texts(Path(path).expanduser(), model)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    ids: list[int] = []
    for i in order:
        ids += model.tokenizer.encode(texts[i])
        if len(ids) >= tokens:
            break
    return of_ids(ids, length=min(length, model.config.context), tokens=tokens)


def _texts(path: Path, model: Decoder) -> list[str]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        chat = None if model.tokenizer is None or model.tokenizer.template is None else model.tokenizer.chat
        return [rows.mark(row, rows.form(row, where), where, chat).text for where, row in rows.lines(path)]
    if not name.endswith(".txt"):
        raise UsageError(f"{path}: calibration texts are read from .txt or .jsonl files, either .gz too")
    try:
        data = path.read_bytes()
        return [(gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")]
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile) as problem:
        raise FormatError(f"{path} cannot be read as text: {problem}") from None
    except OSError as problem:
        raise UsageError(f"cannot read {path}: {problem.strerror}") from None


@dataclass
class Source:
    """What an act may look at while it is the turn of block `layer`.

    model: what is compressed, all blocks before already masked. dense: as it was. found: of each site of the block what it
    read. scorer: the step's importance. Weights and inputs are those of before the block's change.
    """

    model: Decoder
    dense: Decoder
    layer: int
    calibration: Calibration | None = None
    found: dict[str, Inputs] = field(default_factory=dict)
    scorer: Any = None
    seed: int = 0
    gradients: dict[str, Tensor] | None = None
    target: Any = None
    slopes: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, site: str) -> Tensor:
        """The matrix [N, K] of a site in wide floats, by its full name; a copy of a packed one."""
        weight: Any = self.model.get_submodule(site).weight
        return weight.detach() if weight.dtype == torch.float64 else weight.detach().float()

    def bias(self, site: str) -> Tensor | None:
        bias: Any = self.model.get_submodule(site).bias
        return None if bias is None else bias.detach()

    def inputs(self, site: str) -> Inputs:
        """Sums over what a site of this block read. Raises UsageError where nothing was asked to be read."""
        name = site.split(".", 2)[2]
        if name not in self.found:
            raise UsageError(f"nothing was read at {site}: give a calibration text, and let the card's needs say \"inputs\"")
        return self.found[name]

    def score(self, group: Group) -> Tensor:
        """The step's importance of a group's entries [N, K] or units [U]: higher is kept."""
        if self.scorer is None:
            raise UnsupportedError("this step needs an importance: name one beside it, as in \"method + importance\"")
        return self.scorer.score(group, self)

    def stream(self) -> list[Tensor]:
        """What this block reads [B, T, C], a tensor a batch: for methods that fit a whole block."""
        read = self.model if self.target is None or self.target.sequential else self.dense
        with torch.no_grad():
            return [batch_in(read, batch, self.layer) for batch in _batches(self.calibration)]

    @torch.no_grad()
    def rows(self, site: str, most: int = 4096, *, dense: bool = False) -> Tensor:
        """What a site of this block reads, row by row [M, K]: at most so many rows of the text's beginning; dense: in the model
        as it was."""
        read, seen = self.dense if dense else self.model, []
        hook = read.get_submodule(site).register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2)))
        try:
            for batch in _batches(self.calibration):
                read(embeds=batch_in(read, batch, self.layer), layers=[self.layer], logits=NONE)
                if sum(map(len, seen)) >= most:
                    break
        finally:
            hook.remove()
        return torch.cat(seen)[:most]

    def squared_gradients(self, site: str) -> Tensor:
        """Mean over rows of the squared gradient of the loss for each weight [N, K] of the dense model."""
        if self.gradients is None:
            self.gradients = {}
        if site not in self.gradients:
            block = [s for s in self.dense.sites(f"layers.{self.layer}.*.*") if hasattr(s.module, "in_features")]
            single = [{"ids_BT": row[None], "targets_BT": shifted(row[None])} for batch in _batches(self.calibration)
                      for row in batch["ids_BT"]]
            with torch.enable_grad():
                self.gradients |= stats.fisher(self.dense, single, block)
        return self.gradients[site]

    def mean_gradients(self, site: str) -> Tensor:
        """The gradient of the loss, in nats a token of the calibration text, for each weight [N, K] of the dense model."""
        if site not in self.slopes:
            block = [s.name for s in self.dense.sites(f"layers.{self.layer}.*.*") if hasattr(s.module, "in_features")]
            self.slopes |= slopes(self.dense, _batches(self.calibration), block)
        return self.slopes[site]


def slopes(model: Decoder, batches: Sequence[Batch], sites: Sequence[str]) -> dict[str, Tensor]:
    """The gradient of the loss, in nats a token, for the weights [N, K] of some sites; the model is left as it was."""
    weights = {site: model.get_parameter(f"{site}.weight") for site in sites}
    before = {site: weight.requires_grad for site, weight in weights.items()}
    sums = {site: torch.zeros_like(weight) for site, weight in weights.items()}
    tokens = 0
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                loss, counted = next_token(model, {"ids_BT": batch["ids_BT"], "targets_BT": shifted(batch["ids_BT"])})
                found = torch.autograd.grad(loss, list(weights.values()))
            tokens += int(counted)
            for total, gradient in zip(sums.values(), found, strict=True):
                total += gradient
    finally:
        for site, weight in weights.items():
            weight.requires_grad_(before[site])
    return {site: total / max(1, tokens) for site, total in sums.items()}


def shifted(ids_BT: Tensor) -> Tensor:
    """The targets of rows: the ids one place on, the last of none."""
    return torch.cat((ids_BT[:, 1:], torch.full_like(ids_BT[:, :1], -100)), dim=1)


def batch_in(model: Decoder, batch: Batch, layer: int) -> Tensor:
    """The residual stream [B, T, C] that a block reads."""
    ids_BT = batch["ids_BT"]
    return model(ids_BT, layers=range(layer), logits=NONE).hidden if layer else model.embed(ids_BT)


def _batches(calibration: Calibration | None) -> list[Batch]:
    if calibration is None:
        raise UsageError("this step needs a calibration text: give --calibration FILE")
    return calibration.batches


@torch.no_grad()
def block_scores(model: Decoder, calibration: Calibration, metric: str, layers: Sequence[int] | None = None) -> list[float]:
    """The mean over tokens of how far each block moves the residual stream, by METRICS. layers: where only these run."""
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r}; known: {', '.join(METRICS)}")
    order = list(range(len(model.layers)) if layers is None else layers)
    sums, tokens = [0.0] * len(order), 0
    for batch in calibration.batches:
        taps = model(batch["ids_BT"], layers=order, taps=["embed", *order], logits=NONE).taps
        stream = [taps["embed"], *(taps[i] for i in order)]
        for i, (x, y) in enumerate(pairwise(stream)):
            sums[i] += float(METRICS[metric](x.flatten(0, 1), y.flatten(0, 1)).sum())
        tokens += batch["ids_BT"].numel()
    return [total / tokens for total in sums]


def blocks(model: Decoder, calibration: Calibration | None, needs: Sequence[str]) -> Iterator[tuple[int, dict[str, Inputs]]]:
    """Each block's number with what its sites read; without needs of it, with nothing."""
    if not {"inputs", "moments"} & set(needs):
        yield from ((number, {}) for number in range(len(model.layers)))
        return
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    yield from stats.walk(model, _batches(calibration), moments="moments" in needs, dtype=dtype)
