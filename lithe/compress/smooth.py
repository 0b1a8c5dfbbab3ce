"""Rescaling before rounding: what a norm or a matrix gives is divided, the columns that read it multiplied, by factors that a
method finds from the plain model's inputs. Axes: N outputs, K inputs, G groups, I inputs of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lithe.compress import calibrate
from lithe.compress.allocation import Plan
from lithe.compress.calibrate import Calibration
from lithe.compress.rescale import PLACES, readers, rescale
from lithe.compress.rounding import by_group
from lithe.model.decoder import Decoder
from lithe.train.stats import Inputs

# (weights of the sites that read a place, what they read, a mean over inputs that must share a factor) -> factors [K]
Find = Callable[[Sequence[Tensor], Inputs, Callable[[Tensor], Tensor]], Tensor]


def smooth(model: Decoder, calibration: Calibration | None, levels: Plan, find: Find, *, places: Sequence[str] = PLACES,
           moments: bool = False) -> None:
    """Divide what each place gives by factors, in place, where all that reads it is to be rounded: the function stays as it is.

    levels: of the sites. Factors are found for all places of the model as it came. Raises UnsupportedError where a norm or an
    activation stands in the way.
    """
    chosen = []
    for layer, found in calibrate.blocks(model, calibration, ["moments" if moments else "inputs"]):
        for place in places:
            sites = readers(model, layer, place)
            if sites and all(levels.get(site) is not None for site in sites):
                modules: list[Any] = [model.get_submodule(site) for site in sites]
                even = _evened(model, layer, place)
                inputs = found[sites[0].split(".", 2)[2]]
                factor_K = find([m.weight.detach().to(inputs.sum_K) for m in modules], inputs, even)
                chosen.append((layer, place, factor_K))
    for layer, place, factor_K in chosen:
        rescale(model, layer, place, 1 / _own(model, layer, place, factor_K))


def group_errors(lost_NK: Tensor, moment_KK: Tensor, group: int) -> Tensor:
    """[N, G]: the mean square of what each group of inputs adds to an output where its weights are off by so much."""
    lost_NGI = by_group(lost_NK, group)
    each = lost_NGI.shape[-1]
    blocks = [moment_KK[at : at + each, at : at + each].to(lost_NK) for at in range(0, len(moment_KK), each)]
    pieces = [lost_NGI[:, g, : len(block)] for g, block in enumerate(blocks)]
    return torch.stack([(piece @ block * piece).sum(1) for piece, block in zip(pieces, blocks, strict=True)], dim=1)


def fixed(inputs: Inputs, site: str, bits: int) -> dict[str, Tensor]:
    """A Change's range of a site's inputs, around zero, that holds all it read; none for 0 bits."""
    most, half = float(inputs.most_K.max()) or 1.0, 2 ** (bits - 1) - 1
    return {site: torch.tensor([bits, -(half + 1) * most / half, most / half])} if bits else {}


def _evened(model: Decoder, layer: int, place: str) -> Callable[[Tensor], Tensor]:
    """Query heads that read one value head share its factors."""
    if place != "v":
        return lambda value_K: value_K
    shape = model.config.layer(layer)
    heads = (shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
    return lambda value_K: value_K.view(heads).mean(1, keepdim=True).expand(heads).flatten()


def _own(model: Decoder, layer: int, place: str, factor_K: Tensor) -> Tensor:
    """A factor for each row of what is rescaled."""
    shape = model.config.layer(layer)
    return factor_K.view(shape.kv_heads, -1, shape.head_dim)[:, 0].flatten() if place == "v" else factor_K
