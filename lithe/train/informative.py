"""Which blocks of tokens matter to a layer's attention: measured on a text, and predictors fitted to it.

Axes: B batch, T tokens, C width, H heads, G key-value heads, D head width, J blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lithe.errors import UsageError
from lithe.model.decoder import NONE, Decoder
from lithe.model.fewer import Predictor
from lithe.ops.attention import attention
from lithe.ops.blocks import informative, pooled
from lithe.train.batches import Batch
from lithe.train.loss import placed


@dataclass
class Seen:
    """What a layer's attention read, row by row [1, T, C], and the pooled scores of its blocks [1, J, J]."""

    inputs: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)


class Scores:
    """A cache that keeps nothing but the pooled scores of a pass without one."""

    can: frozenset[str] = frozenset()

    def __init__(self, rows: int, size: int):
        self.lengths, self.size, self.found = [0] * rows, size, dict[int, Tensor]()

    def reserve(self, rows: int) -> None:
        """There is nothing to run out of."""

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, **see: Any) -> Tensor:
        self.found[layer] = pooled(q_BHTD, k_BGTD, self.size, see.get("visible_BTS"))
        return attention(q_BHTD, k_BGTD, v_BGTD, **see)


@torch.no_grad()
def look(model: Decoder, batches: Sequence[Batch], layers: Sequence[int], size: int) -> dict[int, Seen]:
    """Run the model over a text as it is. Rows of fewer than two blocks are left out; UsageError where there are no others."""
    found = {i: Seen() for i in layers}
    hooks = [model.get_submodule(f"layers.{i}.self_attn").register_forward_pre_hook(
        lambda module, args, i=i: found[i].inputs.append(args[0].detach())) for i in layers]
    try:
        for batch in batches:
            if batch["ids_BT"].shape[1] < 2 * size:
                continue
            cache = Scores(len(batch["ids_BT"]), size)
            model(batch["ids_BT"], cache=cache, logits=NONE, **placed(batch))  # type: ignore[arg-type]
            for i in layers:
                found[i].scores.append(cache.found[i])
    finally:
        for hook in hooks:
            hook.remove()
    if layers and not found[layers[0]].scores:
        raise UsageError(f"no row of the text has two blocks of {size} tokens: give a longer text, or a smaller block")
    return found


def fitted(seen: Seen, heads: int, size: int, *, hidden: int, steps: int, rate: float, dead: float,
           dice: torch.Generator) -> Predictor:
    """A predictor of a layer's pooled scores, in the mean square, without the hidden units that it hardly uses."""
    dtype = seen.inputs[0].dtype if seen.inputs[0].dtype == torch.float64 else torch.float32
    made = Predictor(heads, seen.inputs[0].shape[-1], size, hidden).to(seen.inputs[0].device, dtype)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_((torch.rand(weight.shape, generator=dice) * 2 - 1) * weight.shape[1] ** -0.5)
    optimizer = torch.optim.Adam(made.parameters(), lr=rate)
    every = torch.cat([scores.flatten() for scores in seen.scores]).to(dtype)
    mean, spread = every.mean(), every.std().clamp(min=1e-9)  # neither changes the order of the blocks
    with torch.enable_grad():
        for step in range(steps):
            i = step % len(seen.inputs)
            off = made(seen.inputs[i].to(dtype)) - (seen.scores[i].to(dtype) - mean) / spread
            off.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for inputs in seen.inputs[:1]:
        made.shrink(inputs, dead)
    return made.requires_grad_(False)


@torch.no_grad()
def recall(made: Predictor, seen: Seen, share: float) -> float:
    """The share of the blocks with the largest scores that the predictor would keep too."""
    hits = total = 0
    for x_BTC, scores_BJJ in zip(seen.inputs, seen.scores, strict=True):
        count = max(1, round(share * scores_BJJ.shape[-1]))
        true, ours = (informative(s).topk(count).indices.flatten().tolist() for s in (scores_BJJ, made(x_BTC)))
        hits, total = hits + len(set(true) & set(ours)), total + count
    return hits / total


def shares(seen: dict[int, Seen], keep: float) -> dict[int, float]:
    """Of the blocks of each layer, how many reach a share of the layer's largest score, that being the same in all layers and
    such that at most `keep` of all blocks are kept.
    """
    relative = {i: torch.cat([(informative(s) / informative(s).amax(-1, keepdim=True)).flatten() for s in one.scores])
                for i, one in seen.items()}
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        kept = sum((r >= middle).float().mean().item() for r in relative.values()) / len(relative)
        low, high = (middle, high) if kept > keep else (low, middle)
    return {i: (r >= high).float().mean().item() for i, r in relative.items()}
