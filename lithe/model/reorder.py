"""Another order of a block's heads and channels: coupled rows and columns move together, so the function stays the same.

FFN channel j is a row of gate and up and a column of down; query head h a row block of q and a column block of o; a key-value
head a row block of k and v that serves a whole group of query heads, so heads move within their group, or with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lithe.errors import UsageError


def channels(mlp: Any, order: Sequence[int]) -> None:
    """Put the FFN's channels in this order, in place."""
    places = _permutation(order, mlp.up_proj.out_features, "channels")
    for layer in filter(None, (mlp.gate_proj, mlp.up_proj)):
        _rows(layer, places)
    if mlp.sub_norm is not None:
        mlp.sub_norm.weight.data = mlp.sub_norm.weight.data[places]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, places]


def heads(attention: Any, order: Sequence[int]) -> None:
    """Put the query heads in this order, in place. Raises UsageError where the heads of a group would be parted."""
    shape = attention.shape
    repeat, D = shape.heads // shape.kv_heads, shape.head_dim
    chosen = _permutation(order, shape.heads, "heads")
    groups = chosen.view(shape.kv_heads, repeat) // repeat
    if not bool((groups == groups[:, :1]).all()):
        raise UsageError(f"{repeat} query heads share a key-value head: they can change places among themselves or with "
                         "another group as a whole, but not part")
    if attention.config.qk_norm == "all" and chosen.tolist() != sorted(chosen.tolist()):
        for norm, moved in ((attention.q_norm, chosen), (attention.k_norm, groups[:, 0])):
            norm.weight.data = norm.weight.data[_spread(moved, D)]
    _rows(attention.q_proj, _spread(chosen, D))
    for layer in (attention.k_proj, attention.v_proj):
        _rows(layer, _spread(groups[:, 0], D))
    if attention.sub_norm is not None:
        attention.sub_norm.weight.data = attention.sub_norm.weight.data[_spread(chosen, D)]
    attention.o_proj.weight.data = attention.o_proj.weight.data[:, _spread(chosen, D)]


def _rows(layer: Any, places: Tensor) -> None:
    layer.weight.data = layer.weight.data[places]
    if layer.bias is not None:
        layer.bias.data = layer.bias.data[places]


def _spread(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width)).flatten()


def _permutation(order: Sequence[int], count: int, what: str) -> Tensor:
    if sorted(order) != list(range(count)):
        raise UsageError(f"an order of {count} {what} names each of 0 to {count - 1} once")
    return torch.tensor(list(order))
