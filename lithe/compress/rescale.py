"""Rescaling that changes no function: what one matrix or norm gives is multiplied, what reads it divided.

Axes: K inputs of the reading sites. Places: "attn_in" and "mlp_in" (a norm, read by q, k, v or by gate and up), "up" (read by
down_proj), "v" (read by o_proj).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lithe.errors import UnsupportedError
from lithe.model.decoder import Decoder
from lithe.model.modules import RMSNorm

PLACES = ("attn_in", "mlp_in", "up", "v")
LOUD, SPREAD, CHANNELS = 15.0, 0.7, 3  # of the outlier twin: its loudest norm channels, and the rest as a log-normal


def readers(model: Decoder, layer: int, place: str) -> list[str]:
    """The sites that read what a place gives; none where the block lacks it."""
    block: Any = model.layers[layer]
    attention = [f"self_attn.{name}_proj" for name in "qkv"] if block.self_attn is not None else []
    ffn = [f"mlp.{name}_proj" for name in ("gate", "up") if getattr(block.mlp, f"{name}_proj", None) is not None]
    if model.config.experts and place in ("mlp_in", "up"):
        raise UnsupportedError("what experts read cannot be rescaled yet")
    found = {"attn_in": attention + (ffn if model.config.parallel else []), "mlp_in": [] if model.config.parallel else ffn,
             "up": ["mlp.down_proj"] if ffn else [], "v": ["self_attn.o_proj"] if attention else []}[place]
    return [f"layers.{layer}.{name}" for name in found]


@torch.no_grad()
def rescale(model: Decoder, layer: int, place: str, factor_K: Tensor) -> None:
    """Multiply what a place gives by factors, and divide the columns that read it. "v": a factor for each of its rows.

    Raises UnsupportedError where a norm or an activation between the two stands in the way.
    """
    block: Any = model.layers[layer]
    sites = readers(model, layer, place)
    if not sites:
        return
    if place in ("attn_in", "mlp_in"):
        norm = getattr(block, f"{place}_norm")
        if not isinstance(norm, RMSNorm):
            raise UnsupportedError(f"block {layer} has no norm at {place} whose gain could be multiplied")
        norm.weight.copy_((norm.weight + norm.offset) * factor_K.to(norm.weight) - norm.offset)
        columns_K = factor_K
    else:
        if model.config.sub_norm or (place == "up" and block.mlp.gate_proj is None):
            raise UnsupportedError(f"block {layer} has a norm or an activation behind {place}: its scale does not pass through")
        _multiply(block.mlp.up_proj if place == "up" else block.self_attn.v_proj, factor_K)
        shape = model.config.layer(layer)
        repeat = shape.heads // shape.kv_heads if place == "v" else 1
        columns_K = factor_K.view(-1, shape.head_dim).repeat_interleave(repeat, 0).flatten() if place == "v" else factor_K
    for site in sites:
        reader: Any = model.get_submodule(site)
        reader.weight.copy_(reader.weight / columns_K.to(reader.weight))


def outliers(model: Decoder, seed: int = 0, places: Sequence[str] = PLACES) -> Decoder:
    """The same function with channels of very different size, as large models have them: three norm channels 15 times as loud,
    all factors log-normal. In place; the logits stay as they were, but for rounding."""
    dice = torch.Generator().manual_seed(seed)
    loud = torch.randperm(model.config.width, generator=dice)[:CHANNELS]
    for layer in range(len(model.layers)):
        for place in places:
            if not readers(model, layer, place):
                continue
            factor_K = (SPREAD * torch.randn(_width(model, layer, place), generator=dice)).exp()
            if place.endswith("_in"):
                factor_K[loud] *= LOUD
            rescale(model, layer, place, factor_K)
    return model


def _width(model: Decoder, layer: int, place: str) -> int:
    shape = model.config.layer(layer)
    return {"up": shape.ffn, "v": shape.kv_heads * shape.head_dim}.get(place, shape.width)


def _multiply(module: nn.Module, factor_N: Tensor) -> None:
    linear: Any = module
    linear.weight.mul_(factor_N.to(linear.weight)[:, None])
    if linear.bias is not None:
        linear.bias.mul_(factor_N.to(linear.bias))
