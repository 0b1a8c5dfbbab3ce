"""The fast path of a decoder on a CPU: packed weights, and compiled layers where a block is of the common kind.

`fuse` changes a model through its sites and gives it a `Fast`, which offers for every block of a pass either its compiled twin
or the block itself, and knows why. Both read and write the same cache, so they mix freely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lithe.errors import UnsupportedError
from lithe.kernels import block as compiled, library
from lithe.kernels.block import LayerWeights, Place, Stack
from lithe.kernels.express import Express
from lithe.kernels.pack import pack
from lithe.model.config import Layer, Rope
from lithe.model.decoder import Attention, Block, Decoder
from lithe.model.express import Way, Ways
from lithe.model.linear import PackedEmbedding, PackedLinear
from lithe.model.mask import Pass
from lithe.model.modules import ACTIVATIONS, FFN, RMSNorm

GATES = (ACTIVATIONS["silu"], ACTIVATIONS["gelu_tanh"])  # that are compiled


class KernelNorm(RMSNorm):
    """The same norm by the layers' kernel, in float32: PyTorch promises nothing about rows of different company."""

    def forward(self, x: Tensor) -> Tensor:
        kernels = library.load()
        if kernels is None or x.device.type != "cpu" or _wants_gradients(x):
            return super().forward(x)
        return compiled.norm(x, _vector(self), self.eps, kernels=kernels)


def fuse(model: Decoder, kind: str, group: int = 0) -> Decoder:
    """Pack a model's matrices in place (kinds and groups of kernels/pack.py); run its layers compiled where that is possible.

    One copy of the weights stays, a tied output matrix included. Activations between layers are float32. Raises
    UnsupportedError for a model that is not on a CPU or whose precision is neither float32 nor bfloat16.
    """
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        raise UnsupportedError(f"compiled layers run on a CPU in float32 or bfloat16, not {model.dtype} on {model.device}")
    if library.load() is None and kind in ("fp32", "bf16"):
        return model  # packing would gain nothing
    if model.lm_head is None:
        head = PackedLinear(pack(model.embed_tokens.weight, kind, group))
        model.lm_head = head
        model.sites("embed_tokens")[0].swap(PackedEmbedding(head, model.dtype))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.sites(name)[0].swap(PackedLinear.of(module, kind, group))
    norm = KernelNorm(model.config.width, model.norm.eps, model.norm.offset)
    norm.weight = model.norm.weight
    model.sites("norm")[0].swap(norm)
    model.fast = Fast(model)
    return model


class Fast(Ways):
    """Compiled twins of a model's blocks. `why` says of each layer without one what stands in its way."""

    def __init__(self, model: Decoder):
        self.model = model
        self.why: dict[int, str] = {}
        self._gathered: list[LayerWeights | None] | None = None
        self._shapes: list[Layer | None] = []  # of the compiled layers
        self._ropes: list[Rope] = []
        self._stacks: WeakKeyDictionary[Any, tuple[list, Stack]] = WeakKeyDictionary()  # by cache, with what it was made from
        self._since = object()  # another one whenever a module was swapped

    @property
    def name(self) -> str:
        """The variant of the kernels that runs."""
        kernels = library.load()
        return "torch" if kernels is None else kernels.name

    @property
    def threads(self) -> int:
        return library.threads()

    def forget(self) -> None:
        """A module was swapped: look again before the next pass."""
        self._gathered = None
        self._stacks.clear()
        self._since = object()

    def layers(self, run: Pass, x_BTC: Tensor) -> Layers | None:
        """The layers of this pass, compiled where they can be; None where none can."""
        kernels, slots = library.load(), run.cache is None or {"slots", "pages"} & run.cache.can
        if kernels is None or not slots or x_BTC.device.type != "cpu" or _wants_gradients(x_BTC):
            return None
        gathered = self._gather()
        return Layers(self, gathered, run, kernels) if self._ropes else None

    def _gather(self) -> list[LayerWeights | None]:
        """What the compiled twin of each layer needs."""
        if self._gathered is None:
            self._gathered, self.why = [], {}
            for i, block in enumerate(self.model.layers):
                found = gather(block)
                self._gathered.append(None if isinstance(found, str) else found)
                if isinstance(found, str):
                    self.why[i] = found
            self._shapes = [cast(Any, block).self_attn.shape if weights else None
                            for block, weights in zip(self.model.layers, self._gathered, strict=True)]
            self._ropes = list({s.rope: s for s in self._shapes if s})
        return self._gathered

    def _way(self, cache: Any, last: int, kernels: library.Library | None) -> Way | None:
        """All of the model over this cache as one call, where every part of it is compiled."""
        model, config = self.model, self.model.config
        embed, norm, out = cast(Any, model.embed_tokens), model.norm, model.lm_head
        ends = type(embed) in (PackedEmbedding, nn.Embedding) and type(norm) is KernelNorm and type(out) is PackedLinear
        plain = config.embed_scale == 1.0 and config.logit_cap is None
        if kernels is None or not ends or not plain or "slots" not in cache.can or cache.device.type != "cpu":
            return None
        if None in (gathered := self._gather()):
            return None
        end, packed = cast(PackedLinear, out), type(embed) is PackedEmbedding
        rounded = (embed.dtype if packed else embed.weight.dtype) == torch.bfloat16
        made = Express(self.stack(gathered, cache, last), embed.head.packed if packed else embed.weight.detach(), end.packed,
                       _vector(norm), norm.eps, end.bias, rounded=rounded, kernels=kernels)
        return Way(made, cache, self._since)

    def head(self, hidden: Tensor) -> Tensor | None:
        """Logits of a residual stream [..., C] by one call; None where the decoder's own two steps are to be taken."""
        norm, out, kernels = self.model.norm, self.model.lm_head, library.load()
        packed = type(norm) is KernelNorm and type(out) is PackedLinear and hidden.device.type == "cpu"
        if not packed or kernels is None or _wants_gradients(hidden):
            return None
        end = cast(PackedLinear, out)
        return compiled.head(end.packed, hidden, _vector(norm), norm.eps, end.bias, kernels=kernels)

    def stack(self, gathered: list[LayerWeights | None], cache: Any, last: int, *shape: int) -> Stack:
        """Weights with the caches and tables of a pass up to position `last`. shape: B and T of one without a cache."""
        tables = [self.model.turns(rope, last, torch.device("cpu")) for rope in self._ropes]
        stores: list[tuple[Any, Any]] = self._own_stores(*shape) if cache is None else [*zip(cache.k, cache.v, strict=True)]
        made_from = [t for pair in (*tables, *stores) for t in pair]
        home = None if cache is None else cache.home
        held = None if home is None else self._stacks.get(home)
        if held is not None and len(held[0]) == len(made_from) and all(map(is_, held[0], made_from)):
            return held[1]
        wide = {rope: (cos.float().contiguous(), sin.float().contiguous())
                for rope, (cos, sin) in zip(self._ropes, tables, strict=True)}
        made = Stack(gathered, [Place(k, v, *wide[s.rope], window=s.window) if s else None
                                for (k, v), s in zip(stores, self._shapes, strict=True)])
        if home is not None:
            self._stacks[home] = made_from, made
        return made

    def _own_stores(self, B: int, T: int) -> list[tuple[Any, Any]]:
        """Room for a pass without a cache: one that all layers of a shape use in turn."""
        made: dict = {}
        for s in filter(None, self._shapes):
            if (size := (B, s.kv_heads, T, s.head_dim)) not in made:
                made[size] = torch.zeros(2, *size, dtype=self.model.dtype).unbind()
        return [made[B, s.kv_heads, T, s.head_dim] if s else (None, None) for s in self._shapes]

    def __getstate__(self) -> dict:
        return {"model": self.model, "why": {}, "_gathered": None, "_shapes": [], "_ropes": []}  # a copy gathers its own

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _stacks=WeakKeyDictionary(), _since=object())


class Layers:
    """The layers of one pass. An item is called as a Block is, whether compiled or not."""

    def __init__(self, fast: Fast, gathered: list[LayerWeights | None], run: Pass, kernels: library.Library):
        self.blocks, self.gathered, self.kernels, self.whole = fast.model.layers, gathered, kernels, run
        self.stack = fast.stack(gathered, run.cache, run.last, *run.pos_BT.shape)
        paging = None if run.cache is None or "pages" not in run.cache.can else cast(Any, run.cache).paging(run.counts)
        self.rows = compiled.Rows(run.pos_BT, run.lengths, run.counts, None if run.plain else run.squares(), run.last,
                                  library.threads(), paging)

    def __getitem__(self, i: int) -> Callable[..., Tensor]:
        return self.blocks[i] if self.gathered[i] is None else partial(self._one, i)

    def together(self, order: Sequence, wanted: frozenset) -> int:
        """How many layers at the beginning of `order` one call can run; 1 where the first runs alone."""
        if type(order) is range and not wanted and None not in self.gathered:
            return len(order)
        count = 0
        for group in order:
            if isinstance(group, tuple) or group != order[0] + count or group < 0 or self.gathered[group] is None:
                break
            count += 1
            if group in wanted:
                break
        return max(count, 1)

    def run(self, x_BTC: Tensor, first: int, count: int) -> Tensor:
        if _wants_gradients(x_BTC):  # of an adapter in a layer before
            for block in self.blocks[first : first + count]:
                x_BTC = block(x_BTC, self.whole)
            return x_BTC
        return compiled.layers(self.stack, self.rows, x_BTC, first, count, kernels=self.kernels)

    def _one(self, i: int, x_BTC: Tensor, run: Pass, attn: bool = True, mlp: bool = True) -> Tensor:
        if not (attn or mlp):
            return x_BTC
        if _wants_gradients(x_BTC):
            return self.blocks[i](x_BTC, run, attn, mlp)
        return compiled.layers(self.stack, self.rows, x_BTC, i % len(self.blocks), attn=attn, mlp=mlp, kernels=self.kernels)


def _wants_gradients(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def gather(block: Any) -> LayerWeights | str:
    """What the compiled twin of a block needs, or why there is none."""
    attention: Any = block.self_attn
    ffn: Any = block.mlp
    if block.parallel or not all(isinstance(norm, nn.Identity | RMSNorm) for norm in (block.attn_out_norm, block.mlp_out_norm)):
        return "its norms are not laid out as attention and FFN in turn, each normed before and perhaps behind"
    if not all(isinstance(norm, RMSNorm) for norm in (block.attn_in_norm, block.mlp_in_norm)):
        return "it has no norm before attention or FFN"
    if attention is None or ffn is None:
        return "it lacks attention or FFN"
    return _attention_problem(attention) or _ffn_problem(ffn) or _gathered(block, attention, ffn)


def _gathered(block: Block, attention: Any, ffn: Any) -> LayerWeights:
    shape, config = attention.shape, attention.config
    linears: dict[str, PackedLinear] = {name: getattr(attention, f"{name}_proj") for name in "qkvo"}
    linears |= {name: getattr(ffn, f"{name}_proj") for name in ("gate", "up", "down")}
    matrices: dict[str, Any] = {name: linear.packed for name, linear in linears.items()}
    biases: dict[str, Any] = {f"{name}_bias": linears[name].bias for name in "qkvo"}
    own = lambda norm: None if norm is None or isinstance(norm, nn.Identity) else _vector(norm)
    return LayerWeights(
        **matrices, **biases, attn_norm=_vector(block.attn_in_norm), mlp_norm=_vector(block.mlp_in_norm),
        attn_out_norm=own(block.attn_out_norm), mlp_out_norm=own(block.mlp_out_norm), q_norm=own(attention.q_norm),
        k_norm=own(attention.k_norm), cap=config.attn_cap or 0.0, gelu=ffn.activation is ACTIVATIONS["gelu_tanh"],
        heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        rotated=int(shape.head_dim * shape.rope.part) // 2 * 2, eps=config.norm_eps,
        scale=config.attn_scale if config.attn_scale is not None else shape.head_dim**-0.5)


def _attention_problem(attention: Any) -> str:
    if type(attention) is not Attention:
        return f"its attention is a {type(attention).__name__}"
    if attention.sub_norm is not None or attention.config.qk_norm == "all":
        return "its attention has a norm of its output before the last matrix, or one over all heads"
    return _linear_problem([attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj])


def _ffn_problem(ffn: Any) -> str:
    if type(ffn) is not FFN or ffn.gate_proj is None or ffn.activation not in GATES or ffn.sub_norm is not None:
        return "its FFN is not gated by SiLU or by GELU in its tanh form"
    if any(getattr(linear, "bias", None) is not None for linear in (ffn.gate_proj, ffn.up_proj, ffn.down_proj)):
        return "its FFN has biases"
    return _linear_problem([ffn.gate_proj, ffn.up_proj], [ffn.down_proj])


def _linear_problem(*together: list[Any]) -> str:
    """Matrices that read the same activations must want them in the same form."""
    for group in together:
        if other := [type(linear).__name__ for linear in group if type(linear) is not PackedLinear]:
            return f"it has a {other[0]} among its matrices"
        if len({linear.kind.rstrip("48") for linear in group}) > 1:
            return "matrices that read the same activations are packed as floats and as whole numbers"
    return ""


def _vector(norm: nn.Module) -> Tensor:
    assert isinstance(norm, RMSNorm)
    weight = norm.weight.detach().float()
    return (weight + norm.offset if norm.offset else weight).contiguous()
