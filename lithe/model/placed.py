"""Keys and values by position, overwritten in place: what passes over any choice of places read and leave behind.

Axes: B sequences, G key-value heads, K stored places, T rows, S slots, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lithe.errors import UnsupportedError
from lithe.model.decoder import Decoder
from lithe.ops.attention import attention


class Store:
    """Keys and values of one text, [G, S, D] a layer; which places hold something is for the caller to know."""

    def __init__(self, model: Decoder, slots: int):
        shapes = [model.config.layer(i) for i in range(model.config.layers)]
        if any(shape.window is not None for shape in shapes):
            raise UnsupportedError("a model with sliding windows has no store by position: decode it without a cache")
        new = lambda shape: torch.zeros(shape.kv_heads, slots, shape.head_dim, dtype=model.dtype, device=model.device)
        self.k, self.v = [new(shape) for shape in shapes], [new(shape) for shape in shapes]

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (*self.k, *self.v))


class Placed:
    """The cache of one pass: row b reads the places keys_BK of its store, and leaves its rows at writes[b] there.

    writes[b]: row numbers of the pass and the places they are stored at; None stores nothing.
    """

    can = frozenset({"overwrite"})

    def __init__(self, stores: Sequence[Store], keys_BK: Tensor, writes: Sequence[tuple[Tensor, Tensor] | None]):
        self.stores, self.keys_BK, self.writes = stores, keys_BK, writes
        self.lengths = [keys_BK.shape[1]] * len(stores)

    def reserve(self, rows: int) -> None:
        """A store has a slot for every place."""

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, **see) -> Tensor:
        """Attend over the stored places, then this pass's rows."""
        pairs = list(zip(self.stores, self.keys_BK, strict=True))
        k_BGSD = torch.cat((torch.stack([store.k[layer][:, keys] for store, keys in pairs]), k_BGTD), 2)
        v_BGSD = torch.cat((torch.stack([store.v[layer][:, keys] for store, keys in pairs]), v_BGTD), 2)
        out_BHTD = attention(q_BHTD, k_BGSD, v_BGSD, **see)
        for b, write in enumerate(self.writes):
            if write is not None:
                rows, places = write
                self.stores[b].k[layer][:, places], self.stores[b].v[layer][:, places] = k_BGTD[b][:, rows], v_BGTD[b][:, rows]
        return out_BHTD
