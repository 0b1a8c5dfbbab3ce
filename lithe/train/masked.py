"""Losses of diffusion models, and the batches they read. Axes: B rows, T places, N masked places, V vocabulary.

A batch is a function of seed and step, as everywhere: the noise too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.errors import UsageError
from lithe.model.decoder import ALL
from lithe.model.mask import FULL
from lithe.train.batches import IGNORED, Batch


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Rows with masked places, as LLaDA trains (Nie et al. 2025, section 2): t is uniform, each place is masked with
    probability (1 - least) t + least, and counts by its inverse.

    rows: step -> ids_BT and learned_BT (places that may be masked; a prompt's are not). mask: what a masked place holds.
    block: 0, or the places of a block, each of which has a t of its own (block diffusion). spread: the t of a batch are
    an even comb, shifted and dealt at random, rather than drawn one by one: uniform each, with less noise in a step's mean.
    """

    rows: Callable[[int], Batch]
    mask: int
    block: int = 0
    least: float = 1e-3
    seed: int = 0
    spread: bool = False

    def __call__(self, step: int, ending: bool = False) -> Batch:
        batch = self.rows(step)
        ids_BT, learned_BT = batch["ids_BT"], batch["learned_BT"]
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        B, T = ids_BT.shape
        levels = -(-T // self.block) if self.block else 1
        t_BL = self._times(B * levels, dice).view(B, levels)
        p_BT = ((1 - self.least) * t_BL + self.least).repeat_interleave(self.block or T, 1)[:, :T]
        masked_BT = (torch.rand(B, T, generator=dice) < p_BT) & learned_BT
        return {"ids_BT": ids_BT.masked_fill(masked_BT, self.mask), "clean_BT": ids_BT,
                "targets_BT": ids_BT.masked_fill(~masked_BT, IGNORED), "weights_BT": 1 / p_BT, "learned_BT": learned_BT}

    def _times(self, count: int, dice: torch.Generator) -> Tensor:
        if not self.spread:
            return torch.rand(count, generator=dice)
        comb = (torch.arange(count) + torch.rand(1, generator=dice)) / count
        return comb[torch.randperm(count, generator=dice)]


def denoising(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of masked places over their probability of being masked, summed, and how many places could have been."""
    logits_BTV = predicted(model, batch)
    masked_BT = batch["targets_BT"] != IGNORED
    each_N = F.cross_entropy(logits_BTV[masked_BT].float(), batch["targets_BT"][masked_BT], reduction="none")
    return (each_N * batch["weights_BT"][masked_BT]).sum(), batch["learned_BT"].sum()


def predicted(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, T, V] of the noisy places: in one pass, beside the clean ones where the model attends by blocks.

    Where the logits of a place stand one row before it, those of a block's first place stand in the block before, which is
    clean by the time they are wanted.
    """
    config = cast(Any, model).config
    ids_BT = batch["ids_BT"]
    if config.attends == "full":
        logits_BTV = clean_BTV = model(ids_BT, mask=FULL, logits=ALL).logits
    elif config.attends == "blocks":
        B, T = ids_BT.shape
        pos_BT = torch.arange(T, device=ids_BT.device).repeat(2).expand(B, -1)
        both_BT = torch.cat((ids_BT, batch["clean_BT"]), 1)
        both_BTV = model(both_BT, pos_BT=pos_BT, mask=beside(T, config.block).to(ids_BT.device), logits=ALL).logits
        logits_BTV, clean_BTV = both_BTV[:, :T], both_BTV[:, T:]
    else:
        raise UsageError("this model reads from left to right: it has no masked places to learn")
    if not config.shifted:
        return logits_BTV
    first_T = torch.arange(1, ids_BT.shape[1], device=ids_BT.device) % max(config.block, 1) == 0
    before_BTV = torch.where(first_T[:, None], clean_BTV[:, :-1], logits_BTV[:, :-1])
    return torch.cat((logits_BTV[:, :1], before_BTV), 1)


def beside(places: int, block: int) -> Tensor:
    """Who sees whom among noisy places, then clean ones, boolean [2T, 2T]: a noisy block sees itself and the clean ones before
    it, a clean one the clean ones up to itself (Arriola et al. 2025, section 3.2)."""
    at = torch.arange(places) // block
    same, before, upto = at[:, None] == at, at[:, None] > at, at[:, None] >= at
    return torch.cat((torch.cat((same, before), 1), torch.cat((torch.zeros_like(same), upto), 1)))
