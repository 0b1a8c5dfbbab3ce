"""Fewer channels in the residual stream: what every block reads and writes gets narrower. Axes: C channels."""

from __future__ import annotations

import torch
from torch import Tensor

from lithe.compress.surgery import remade
from lithe.errors import UnsupportedError
from lithe.model.decoder import Decoder
from lithe.model.linear import Factored, PackedLinear, Ranged

WRITE, READ = ("o_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def check(model: Decoder) -> None:
    """Raises UnsupportedError for traits under which channels of the residual stream cannot go."""
    config = model.config
    if config.norm_out or not config.norm_in:
        raise UnsupportedError("this model norms what its blocks give: without some channels the others' norm would change")
    if config.experts or config.chosen or config.embed_scale != 1.0:
        raise UnsupportedError("models with experts, chosen channels or scaled embeddings keep their residual width yet")
    if any(isinstance(module, PackedLinear | Factored | Ranged) for module in model.modules()):
        raise UnsupportedError("some layers are packed or factored already: cut the residual width before that")


def multiple(width: int) -> int:
    """Widths go in steps of this, which kernels like."""
    return 32 if width >= 128 else 8


def target(width: int, ratio: float) -> int:
    """The channels that stay where so large a share goes."""
    each = multiple(width)
    return max(each, round(width * (1 - ratio) / each) * each)


@torch.no_grad()
def narrowed(model: Decoder, kept_C: Tensor) -> Decoder:
    """A new model of these channels, ascending. It computes what `model` does if all its other channels are always zero.

    A norm takes its mean over fewer channels, so the stream shrinks by sqrt(kept / C), and what gains give grows by as much:
    eps stays what it was.
    """
    check(model)
    config, shrink = model.config, (len(kept_C) / model.config.width) ** 0.5
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for name, tensor in state.items():
        leaf = name.rsplit(".", 2)[-2]
        if leaf in ("embed_tokens", "lm_head", *READ) and name.endswith("weight"):
            state[name] = tensor[:, kept_C] * (shrink if leaf == "embed_tokens" else 1)
        elif leaf in WRITE:
            state[name] = tensor[kept_C] * shrink
        elif leaf in ("attn_in_norm", "mlp_in_norm") or name == "norm.weight":
            own = shrink ** 2 if config.tied and name == "norm.weight" else shrink  # a tied head shrinks with the embedding
            state[name] = (tensor[kept_C] + config.norm_offset) / own - config.norm_offset
    return remade(model, config.replace(width=len(kept_C)), state).requires_grad_(False)


@torch.no_grad()
def turned(model: Decoder, turn_CC: Tensor) -> Decoder:
    """The same function with the residual stream in another basis: x becomes x Q. Gains of norms move into what reads them.

    In place; a head that was the embedding becomes a matrix of its own, and so the model is new where it was tied.
    """
    check(model)
    if model.config.norm_offset:
        raise UnsupportedError("gains that are written as an offset cannot be taken out of this model's norms")
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    wide = lambda tensor: tensor.to(turn_CC)
    gains = {name: wide(tensor) for name, tensor in state.items() if name.endswith("_in_norm.weight") or name == "norm.weight"}
    head_VC = wide(state.get("lm_head.weight", state["embed_tokens.weight"]))
    for name, tensor in state.items():
        leaf, kind = name.rsplit(".", 2)[-2:]
        if leaf in READ and kind == "weight":
            norm = "attn_in_norm" if ".self_attn." in name or model.config.parallel else "mlp_in_norm"
            gain_C = gains[".".join([*name.split(".")[:2], norm, "weight"])]
            state[name] = (wide(tensor) * gain_C @ turn_CC).to(tensor)
        elif leaf in WRITE:
            state[name] = (turn_CC.mT @ wide(tensor)).to(tensor)
        elif name in gains:
            state[name] = torch.ones_like(tensor)
    state["lm_head.weight"] = (head_VC * gains["norm.weight"] @ turn_CC).to(state["embed_tokens.weight"])
    state["embed_tokens.weight"] = (wide(state["embed_tokens.weight"]) @ turn_CC).to(state["embed_tokens.weight"])
    return remade(model, model.config.replace(tied=False), state).requires_grad_(False)
