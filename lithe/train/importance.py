"""What a model's inner units mean for its output, with no labels: how dropout's noise in the output depends on each of them.

Ke et al. 2023 (soft-masking of units), as CoFiTune uses it. Axes: F inner channels, C width, H heads, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lithe.model.decoder import ALL, Decoder
from lithe.train.batches import Batch

SHARE = 0.1  # factor on the divergence; a scale that the norm below takes out again


@dataclass
class Units:
    """A gradient or an importance for each unit of one layer: inner channels, what the FFN gives, and heads."""

    inner_F: Tensor
    outer_C: Tensor
    heads_H: Tensor

    def each(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.inner_F, self.outer_C, self.heads_H


def importance(model: Decoder, batches: Sequence[Batch], layers: Sequence[int], *, dropout: float,
               dice: torch.Generator) -> dict[int, Units]:
    """For each layer asked for, the importance of its units in [0, 1).

    Two passes with dropout on what attention and FFN give, whose laws then differ; the gradient of the divergence between them
    by a factor 1 on each unit, summed over the text, is what the unit has to do with it. Without dropout it is zero.
    """
    ones = {i: _ones(model, i) for i in layers}
    tokens = 0
    with _frozen(model), contextlib.ExitStack() as hooks:
        for number, block in enumerate(model.layers):
            for module, hook, before in _noise(block, ones.get(number), dropout, dice):
                add = module.register_forward_pre_hook if before else module.register_forward_hook
                hooks.callback(add(hook).remove)
        for batch in batches:
            first, second = (_log_law(model, batch) for _ in range(2))
            (SHARE * (second.exp() * (second - first)).sum()).backward()
            tokens += batch["ids_BT"].numel()
    grad = lambda unit: torch.zeros_like(unit) if unit.grad is None else unit.grad / max(1, tokens)
    return {i: Units(*(normal(grad(unit)) for unit in units.each())) for i, units in ones.items()}


def normal(raw: Tensor) -> Tensor:
    """|tanh(z)| of the z-scores over a layer's units; zero where all are alike."""
    spread = raw.std(unbiased=False)
    return torch.zeros_like(raw) if float(spread) == 0 else ((raw - raw.mean()) / spread).tanh().abs()


def _ones(model: Decoder, layer: int) -> Units:
    shape = model.config.layer(layer)
    return Units(*(torch.ones(n, dtype=torch.float64 if model.dtype == torch.float64 else torch.float32, device=model.device,
                              requires_grad=True) for n in (shape.ffn, shape.width, shape.heads)))


def _log_law(model: Decoder, batch: Batch) -> Tensor:
    return torch.log_softmax(model(batch["ids_BT"], logits=ALL).scores.double(), -1)


def _noise(block: Any, ones: Units | None, share: float, dice: torch.Generator) -> Iterator[tuple[Any, Any, bool]]:
    """(module, hook, whether it runs before) that put factors and dropout into a layer."""

    def dropped(x: Tensor) -> Tensor:
        if not share:
            return x
        keep = torch.rand(x.shape, generator=dice).to(x.device) >= share
        return x * keep / (1 - share)

    factor = lambda x, unit: x if unit is None else (x * unit).to(x.dtype)
    if block.self_attn is not None:
        D = block.self_attn.shape.head_dim
        spread = lambda: None if ones is None else ones.heads_H.repeat_interleave(D)
        yield block.self_attn.o_proj, lambda module, args: (dropped(factor(args[0], spread())), *args[1:]), True
    if block.mlp is not None:
        inner, outer = (None, None) if ones is None else (ones.inner_F, ones.outer_C)
        yield block.mlp.up_proj, lambda module, args, y: factor(y, inner), False
        yield block.mlp, lambda module, args, y: dropped(factor(y, outer)), False


@contextlib.contextmanager
def _frozen(model: Decoder) -> Iterator[None]:
    """No weight gets a gradient, so that only what units need is kept."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for weight, _ in before:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)
