"""The fast path of a decoder on a CPU: packed weights, and compiled layers where a block is of the common kind.

`fuse` changes a model through its sites and gives it a `Fast`, which offers for every block of a pass either its compiled twin
or the block itself, and knows why. Both read and write the same cache, so they mix freely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from lithe.errors import UnsupportedError
from lithe.kernels import block as compiled, library
from lithe.kernels.block import LayerWeights
from lithe.kernels.pack import pack
from lithe.model.decoder import Attention, Block, Decoder, Pass
from lithe.model.linear import PackedEmbedding, PackedLinear
from lithe.model.modules import ACTIVATIONS, FFN, RMSNorm


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


class Fast:
    """Compiled twins of a model's blocks. `why` says of each layer without one what stands in its way."""

    def __init__(self, model: Decoder):
        self.model = model
        self.why: dict[int, str] = {}
        self._gathered: list[LayerWeights | None] | None = None

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

    def blocks(self, run: Pass) -> Sequence[Callable[..., Tensor]] | nn.ModuleList:
        """What runs each layer of this pass: called as a Block is."""
        kernels = library.load()
        if kernels is None or run.cache is None or "slots" not in run.cache.can or run.pos_BT.device.type != "cpu":
            return self.model.layers
        if self._gathered is None:
            self._gathered, self.why = [], {}
            for i, block in enumerate(self.model.layers):
                found = gather(block)
                self._gathered.append(None if isinstance(found, str) else found)
                if isinstance(found, str):
                    self.why[i] = found
        shared: dict = {}
        return [block if weights is None else partial(_run, weights, cast(Block, block), shared, kernels)
                for weights, block in zip(self._gathered, self.model.layers, strict=True)]

    def __getstate__(self) -> dict:
        return {"model": self.model, "why": {}, "_gathered": None}  # a copy gathers its own


def _run(weights: LayerWeights, block: Block, shared: dict, kernels: library.Library, x_BTC: Tensor, run: Pass,
         attn: bool = True, mlp: bool = True) -> Tensor:
    """A block's forward by its compiled twin. `shared` holds what layers of one pass have in common."""
    if _wants_gradients(x_BTC):
        return block(x_BTC, run, attn, mlp)
    attention: Any = block.self_attn
    cache: Any = run.cache
    rope, window = key = attention.shape.rope, attention.shape.window
    if key not in shared:
        cos, sin = run.rotation[rope]
        shared[key] = compiled.Rows(lengths=cache.lengths, rows=x_BTC.shape[1], visible=run.visible[window], cos_BTR=cos,
                                    sin_BTR=sin, threads=library.threads())
    k_BGSD, v_BGSD = cache.k[attention.index], cache.v[attention.index]
    return compiled.layer(weights, shared[key], x_BTC, k_BGSD, v_BGSD, attn=attn, mlp=mlp, kernels=kernels)


def _wants_gradients(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def gather(block: Any) -> LayerWeights | str:
    """What the compiled twin of a block needs, or why there is none."""
    attention: Any = block.self_attn
    ffn: Any = block.mlp
    if block.parallel or not all(isinstance(norm, nn.Identity) for norm in (block.attn_out_norm, block.mlp_out_norm)):
        return "its norms are not laid out as attention and FFN in turn, each normed before"
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
    return LayerWeights(
        **matrices, **biases, attn_norm=_vector(block.attn_in_norm), mlp_norm=_vector(block.mlp_in_norm),
        q_norm=None if attention.q_norm is None else _vector(attention.q_norm),
        k_norm=None if attention.k_norm is None else _vector(attention.k_norm),
        heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        rotated=int(shape.head_dim * shape.rope.part) // 2 * 2, eps=config.norm_eps,
        scale=config.attn_scale if config.attn_scale is not None else shape.head_dim**-0.5)


def _attention_problem(attention: Any) -> str:
    if type(attention) is not Attention:
        return f"its attention is a {type(attention).__name__}"
    if attention.config.attn_cap is not None or attention.sub_norm is not None or attention.config.qk_norm == "all":
        return "its attention has a soft cap, a norm of its output or a norm over all heads"
    return _linear_problem([attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj])


def _ffn_problem(ffn: Any) -> str:
    if type(ffn) is not FFN or ffn.gate_proj is None or ffn.activation is not ACTIVATIONS["silu"] or ffn.sub_norm is not None:
        return "its FFN is not the SiLU-gated one"
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
    return (norm.weight.detach().float() + norm.offset).contiguous()
