"""Rows before the text: keys and values that every row of a request sees, learnt themselves or made from learnt embeddings.

They stand at positions -P to -1, so that the text keeps its own and a cache holds nothing of them. Rotary positions are
relative: this equals P rows in the cache and a text that begins at P. Axes: G key-value heads, P rows before the text, D head
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lithe.errors import FormatError, UnsupportedError
from lithe.model.adapted import Choice, Host, Part, taken
from lithe.ops.attention import attention
from lithe.ops.rope import frequencies, rotate


class Prefixed(Host):
    """An Attention whose rows also see the rows that their adapters put before the text."""

    def forward(self, x_BTC: Tensor, run: Any) -> Tensor:
        groups = self.groups(x_BTC)
        if not groups:
            return self.base(x_BTC, run)
        pairs: list[tuple[Tensor, Tensor] | None] = [None] * len(x_BTC)
        for levels, rows, mix in groups:
            found = [part.pair(self.base, self.choice.current.led.get(mix)) for part, _ in levels]
            if any(weight != 1 for _, weight in levels):
                raise UnsupportedError("rows before the text are there or not: they can have no weight but 1")
            k_GPD, v_GPD = (torch.cat(side, 1).to(x_BTC.dtype) for side in zip(*found, strict=True))
            for b in range(len(x_BTC)) if rows is None else rows.tolist():
                pairs[b] = k_GPD, v_GPD
        return self.base(x_BTC, run.over(Led(run.cache, _padded(pairs, x_BTC))))


class Led:
    """A cache that shows some rows before its own."""

    def __init__(self, cache: Any, lead: tuple[Tensor, Tensor, Tensor]):
        self.cache, self.lead = cache, lead

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, **see: Any) -> Tensor:
        if self.cache is None:
            return attention(q_BHTD, k_BGTD, v_BGTD, lead=self.lead, **see)
        return self.cache.attend(layer, q_BHTD, k_BGTD, v_BGTD, lead=self.lead, **see)


class Prefix(Part):
    """Learnt keys (not rotated) and values of one layer's rows before the text (Li and Liang 2021)."""

    kind = "key_value_rows"

    def __init__(self, k_GPD: Tensor, v_GPD: Tensor):
        super().__init__()
        self.k, self.v = nn.Parameter(k_GPD), nn.Parameter(v_GPD)

    def pair(self, base: Any, led: list | None) -> tuple[Tensor, Tensor]:
        """Keys as the text's first row sees them, and values."""
        return turned(self.k, base.shape, -self.k.shape[1]), self.v

    def hosts(self, model: Any, site: str) -> list[str]:
        _refuse_windows(model)
        return [site]

    def host(self, module: nn.Module, choice: Choice) -> Host:
        return Prefixed(module, choice)

    def problem(self, module: Any) -> str:
        shape: Any = getattr(module, "shape", None)
        if not hasattr(shape, "kv_heads"):
            return f"it is for attention, and a {type(module).__name__} is none"
        want, have = (shape.kv_heads, shape.head_dim), (self.k.shape[0], self.k.shape[2])
        return "" if have == want else f"it is for {have[0]} key-value heads of width {have[1]}, not {want[0]} of {want[1]}"

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Prefix:
        _, (k_GPD, v_GPD) = taken("key-value rows", settings, []), taken("key-value rows", tensors, ["k", "v"])
        if k_GPD.dim() != 3 or k_GPD.shape != v_GPD.shape:
            raise FormatError(f"keys of {list(k_GPD.shape)} and values of {list(v_GPD.shape)} are no rows before a text")
        return cls(k_GPD, v_GPD)


class Prompt(Part):
    """Learnt embeddings [P, C] of rows before the text (Lester et al. 2021), hosted by every layer's attention."""

    kind = "embedded_rows"
    leads = True

    def __init__(self, embeds_PC: Tensor):
        super().__init__()
        self.embeds = nn.Parameter(embeds_PC)

    def rows(self, model: Any, number: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of each layer: the rows run by themselves, since none of them sees the text."""
        seen = _Collector()
        model(embeds=self.embeds.to(model.dtype).unsqueeze(0), cache=seen, logits="none", adapters_B=[number])
        return seen.pairs

    def pair(self, base: Any, led: list | None) -> tuple[Tensor, Tensor]:
        assert led, "the pass did not run this adapter's rows"
        pairs = [pairs[base.index] for pairs in led]
        k_GPD, v_GPD = (torch.cat(side, 1) for side in zip(*pairs, strict=True))
        return turned(k_GPD, base.shape, -k_GPD.shape[1]), v_GPD

    def hosts(self, model: Any, site: str) -> list[str]:
        _refuse_windows(model)
        return [f"layers.{i}.self_attn" for i in range(model.config.layers) if model.config.layer(i).heads]

    def host(self, module: nn.Module, choice: Choice) -> Host:
        return Prefixed(module, choice)

    def problem(self, module: Any) -> str:
        width = getattr(module, "embedding_dim", None)
        return "" if width == self.embeds.shape[1] else f"it is for a width of {self.embeds.shape[1]}, not {width}"

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Prompt:
        _, (embeds_PC,) = taken("embedded rows", settings, []), taken("embedded rows", tensors, ["embeds"])
        if embeds_PC.dim() != 2:
            raise FormatError(f"embedded rows have shape {list(embeds_PC.shape)}: rows of the model's width are wanted")
        return cls(embeds_PC)


class _Collector:
    """A cache that keeps the keys and values of one pass as they are, gradients included."""

    can: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.lengths, self.pairs = [0], {}  # type: ignore[var-annotated]

    def reserve(self, rows: int) -> None:
        """There is nothing to run out of."""

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, **see: Any) -> Tensor:
        self.pairs[layer] = k_BGTD[0], v_BGTD[0]
        return attention(q_BHTD, k_BGTD, v_BGTD, **see)


def turned(k_GPD: Tensor, shape: Any, steps: int) -> Tensor:
    """Keys moved by so many positions. A factor on the cosines, as YaRN has, is no part of moving."""
    settings = {key: value for key, value in vars(shape.rope).items() if key != "part"}
    inv_R, _ = frequencies(int(shape.head_dim * shape.rope.part), **settings)
    angles = (steps * inv_R.double()).repeat(2).to(k_GPD.device)
    cos, sin = (wave.to(k_GPD.dtype).expand(1, k_GPD.shape[1], -1) for wave in (angles.cos(), angles.sin()))
    return rotate(k_GPD.unsqueeze(0), cos, sin)[0]


def _padded(pairs: list[tuple[Tensor, Tensor] | None], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, G, P, D] of unequal numbers of rows, and which of them are real [B, P]."""
    G, _, D = next(pair for pair in pairs if pair is not None)[0].shape
    none = x.new_zeros(G, 0, D)
    sides = [(none, none) if pair is None else pair for pair in pairs]
    counts = [k.shape[1] for k, _ in sides]
    pad = lambda t: torch.cat((t, t.new_zeros(G, max(counts) - t.shape[1], D)), 1)
    k_BGPD, v_BGPD = (torch.stack([pad(side[i]) for side in sides]) for i in (0, 1))
    return k_BGPD, v_BGPD, torch.tensor([[p < n for p in range(max(counts))] for n in counts], device=x.device)


def _refuse_windows(model: Any) -> None:
    if model.windows - {None}:
        raise UnsupportedError("rows before the text need attention without a sliding window, which they would slide out of")
