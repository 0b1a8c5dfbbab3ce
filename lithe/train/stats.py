"""The calibration walk: what the sites of a model read, streamed block by block, and what its loss thinks of each weight.

Axes: B rows, T tokens, C width, N outputs and K inputs of a site, S sampled tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import NONE, Decoder
from lithe.model.header import some
from lithe.model.site import Site
from lithe.train.batches import Batch, real
from lithe.train.loss import next_token, placed

SITES = ("*.*", "mlp.experts.*.*")  # all linear layers of a block
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


@dataclass
class Inputs:
    """Sums over the `tokens` inputs x of a site that have been seen: x, |x|, x^2, the largest |x|, and x x^T where wanted."""

    tokens: int
    sum_K: Tensor
    abs_K: Tensor
    square_K: Tensor
    most_K: Tensor
    outer_KK: Tensor | None = None

    @classmethod
    def none(cls, site: Any, *, moments: bool, dtype: torch.dtype, device: torch.device) -> Inputs:
        width, zero = site.in_features, partial(torch.zeros, dtype=dtype, device=device)
        return cls(0, zero(width), zero(width), zero(width), zero(width), zero(width, width) if moments else None)

    def add(self, x_NK: Tensor) -> None:
        wide_NK = x_NK.to(self.sum_K.dtype)
        self.tokens += len(wide_NK)
        self.sum_K += wide_NK.sum(0)
        self.abs_K += wide_NK.abs().sum(0)
        self.square_K += wide_NK.square().sum(0)
        if len(wide_NK):
            self.most_K = torch.maximum(self.most_K, wide_NK.abs().amax(0))
        if self.outer_KK is not None:
            self.outer_KK += wide_NK.T @ wide_NK

    @property
    def second_moment_KK(self) -> Tensor:
        """E[x x^T]."""
        if self.outer_KK is None:
            raise UsageError("this walk was not asked for second moments")
        return self.outer_KK / max(1, self.tokens)

    @property
    def norm_K(self) -> Tensor:
        """The L2 norm of each input over all tokens, as Wanda weighs columns."""
        return self.square_K.sqrt()

    @property
    def mean_K(self) -> Tensor:
        return self.sum_K / max(1, self.tokens)

    @property
    def variance_K(self) -> Tensor:
        return (self.square_K / max(1, self.tokens) - self.mean_K.square()).clamp(min=0)


def walk(model: Decoder, batches: Sequence[Batch], patterns: Sequence[str] = SITES, *, moments: bool = True,
         dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, dict[str, Inputs]]]:
    """For each block in turn: its number, and what its linear sites have read, by their names in the block.

    Whatever is done to the block until the next is asked for, such as pruning it, the blocks after it see: their inputs come
    from the changed block. Only the residual stream of the batches and one block's statistics are held. patterns: names within
    a block, such as "mlp.down_proj". Padding is not counted; of experts, whose tokens cannot be told apart, it is refused.
    """
    if not any(_linear(model, number, patterns) for number in range(len(model.layers))):
        raise UsageError(f"no linear site of any block matches {' or '.join(patterns)}")
    with torch.no_grad():
        streams_BTC = [model.embed(batch["ids_BT"].to(model.device)) for batch in batches]
    for number in range(len(model.layers)):
        sites = _linear(model, number, patterns)
        found = {name: Inputs.none(site.module, moments=moments, dtype=dtype, device=model.device)
                 for name, site in sites.items()}
        for batch, x_BTC in zip(batches, streams_BTC, strict=True):
            tokens_BT = real(batch)
            with contextlib.ExitStack() as hooks:
                for name, site in sites.items():
                    handle = site.module.register_forward_pre_hook(partial(_note, found[name], tokens_BT))
                    hooks.callback(handle.remove)
                _block(model, number, batch, x_BTC)
        yield number, found
        streams_BTC = [_block(model, number, batch, x) for batch, x in zip(batches, streams_BTC, strict=True)]


def fisher(model: Decoder, examples: Iterable[Batch], sites: Sequence[Site], loss: Loss = next_token) -> dict[str, Tensor]:
    """The diagonal Fisher information of the sites' weights [N, K]: the mean over examples of their squared gradients.

    examples: batches of one row each, since the square must be taken before gradients are summed. A weight's gradient is
    dropped as soon as it is counted, so one is held at a time beside the sums. The model is left as it was.
    """
    weights = {site.name: site.module.weight for site in sites if isinstance(site.module.weight, nn.Parameter)}
    if fixed := [site.name for site in sites if site.name not in weights]:
        raise UnsupportedError(f"{some(fixed)} have packed weights, which have no gradient")
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    wanted = {id(weight) for weight in weights.values()}
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    count = 0
    try:
        with contextlib.ExitStack() as hooks:
            for weight, _, _ in before:
                weight.requires_grad_(id(weight) in wanted)
                weight.grad = None
            for name, weight in weights.items():
                handle = weight.register_post_accumulate_grad_hook(partial(_square, sums[name]))
                hooks.callback(handle.remove)
            for batch in examples:
                if len(batch["ids_BT"]) != 1 or "docs_BT" in batch:
                    raise UsageError("the Fisher information is taken example by example: give batches of one unpacked row")
                loss(model, {name: value.to(model.device) for name, value in batch.items()})[0].backward()
                count += 1
    finally:
        for weight, required, grad in before:
            weight.requires_grad_(required)
            weight.grad = grad
    return {name: total / max(1, count) for name, total in sums.items()}


def _linear(model: Decoder, number: int, patterns: Sequence[str]) -> dict[str, Site]:
    """The linear sites of a block that a pattern matches, by their names in the block; a block may lack some."""
    found: dict[str, Site] = {}
    for pattern in patterns:
        with contextlib.suppress(UsageError):
            found |= {site.name: site for site in model.sites(f"layers.{number}.{pattern}")}
    return {name.split(".", 2)[2]: site for name, site in found.items() if hasattr(site.module, "in_features")}


@torch.no_grad()
def _block(model: Decoder, number: int, batch: Batch, x_BTC: Tensor) -> Tensor:
    given = {name: value.to(x_BTC.device) for name, value in placed(batch).items()}
    return model(embeds=x_BTC, layers=[number], logits=NONE, **given).hidden


def _note(inputs: Inputs, real_BT: Tensor, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    x = arguments[0]
    if not real_BT.all():
        if x.shape[:-1] != real_BT.shape:
            raise UnsupportedError("experts choose their tokens, so padding among them cannot be told: give rows without any")
        x = x[real_BT.to(x.device)]
    inputs.add(x.reshape(-1, x.shape[-1]))


def _square(total: Tensor, weight: Tensor) -> None:
    assert weight.grad is not None
    total += weight.grad.square()
    weight.grad = None
