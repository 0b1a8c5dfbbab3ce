"""Folders that other programs read: a stock model in floats, or whole-number weights as compressed-tensors or GPTQ lay them.

What a layout cannot say is padded or written as floats, and told; what cannot be so either is refused.
Axes: N outputs, K inputs, G groups of inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lithe.errors import UnsupportedError, UsageError
from lithe.kernels.pack import LEVELS, levels
from lithe.model import checkpoint, families, names
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.header import WEIGHTS
from lithe.model.linear import Factored, PackedLinear
from lithe.model.narrow import NARROW, NarrowLinear
from lithe.model.packing import HEAD, layers
from lithe.model.writing import writing

LAYOUTS = ("plain", "compressed-tensors", "gptq-v1")
GPTQ = '{"quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": false, "sym": true, "lm_head": false}'
BITS = {"int2": 2, "int3": 3, "int4": 4, "int8": 8, "dual4": 8}  # of a level as it is written
Whole = tuple[Tensor, Tensor, int, int]  # levels [N, K], scales [N, G], bits, inputs that share a scale (0: all)


def export(model: Decoder, folder: str | Path, layout: str, *, overwrite: bool = False) -> list[str]:
    """Write a folder that transformers reads; gives what of the model had to be padded or widened, a line each.

    Floats are written in the model's precision, beside whole numbers or where whole numbers became floats so wide that nothing
    is rounded. Raises UnsupportedError for models that a stock configuration or the layout cannot say.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"there is no layout {layout!r}; known: {', '.join(LAYOUTS)}")
    stock, notes = plain(model)
    whole = {} if layout == "plain" else _whole(model, stock, notes)
    if layout == "plain":
        dtype = torch.float32 if layers(model) else model.dtype
        checkpoint.save(stock, folder, dtype=dtype, tokenizer_from=model.folder, overwrite=overwrite)
        return notes
    if not whole:
        raise UnsupportedError(f"this model has no whole-number weights that the layout {layout} could hold: take plain")
    tensors, settings = (_compressed if layout == "compressed-tensors" else _gptq)(whole, stock)
    _write(model, stock, Path(folder), overwrite, whole, tensors, settings)
    return notes


def plain(model: Decoder) -> tuple[Decoder, list[str]]:
    """The same function in plain float32 layers of one shape each, that a stock configuration can say, and what was padded."""
    notes: list[str] = []
    if model.config.inputs:
        raise UnsupportedError(f"{model.config.inputs[0][0]} reads rounded inputs, which no stock layout can say")
    config = _config(model.config, notes)
    with torch.device("meta"):
        stock = Decoder(config)
    state = {name: _value(model, name, weight) for name, weight in stock.named_parameters()}
    stock.load_state_dict(state, strict=False, assign=True)
    stock.receipts, stock.token_ids, stock.folder = model.receipts, model.token_ids, model.folder
    if factored := [name for name, module in model.named_modules() if isinstance(module, Factored)]:
        notes.append(f"{len(factored)} pairs of thin matrices are written as their products")
    return stock.eval(), notes


def _config(old: Config, notes: list[str]) -> Config:
    """Widths that agree in all layers."""
    widths = [old.layer(i) for i in range(old.layers)]
    most: dict[str, int] = {name: max(getattr(layer, name) for layer in widths) for name in ("heads", "kv_heads")}
    most |= {} if old.experts else {"ffn": max(layer.ffn for layer in widths)}
    padded = sum(any(getattr(layer, name) != size for name, size in most.items()) for layer in widths)
    if padded:
        if len({layer.heads // layer.kv_heads for layer in widths if layer.heads}) > 1:
            raise UnsupportedError("layers share key-value heads among different numbers of queries, which cannot be padded")
        if old.sub_norm or old.qk_norm == "all":
            raise UnsupportedError("this model norms a layer's heads or channels together: padding would change the norm")
        notes.append(f"{padded} of {old.layers} layers are padded with zeros to {most}: right logits, no speed-up")
    new = old.replace(**most, ranks=(), inputs=(), blocks=(), pool=())
    tries = [new, new.replace(qkv_bias=True, out_bias=True)] if old.qkv_bias or old.out_bias else [new]
    for found in tries:
        if families.express(found) is not None:
            return found
    raise UnsupportedError(f"no stock {old.family} configuration can say this model")


def _value(model: Decoder, name: str, like: Tensor) -> Tensor:
    """A weight of the stock model: the model's own, widened, zeros around it."""
    place, _, leaf = name.rpartition(".")
    try:
        found = getattr(model.get_submodule(place), leaf)
    except AttributeError:  # a half or a bias that the model lacks
        found = None
    if found is None:
        return torch.ones(like.shape) if "norm" in place.rpartition(".")[2] else torch.zeros(like.shape)
    found = found.detach().float()
    return F.pad(found, [n for more, have in zip(like.shape[::-1], found.shape[::-1], strict=True) for n in (0, more - have)])


def _whole(model: Decoder, stock: Decoder, notes: list[str]) -> dict[str, Whole]:
    """What stays whole numbers, by layer, padded as the stock model is; the others are told."""
    found: dict[str, Whole] = {}
    packed = {name: layer for name, layer in layers(model).items() if isinstance(layer, PackedLinear)}
    rows = all(layer.group >= layer.in_features for layer in packed.values())  # a scale each
    for name, layer in packed.items():
        if layer.kind not in BITS or name == HEAD:
            if layer.kind in LEVELS or layer.kind in NARROW:
                notes.append(f"{name}: {layer.kind} weights become floats")
            continue
        if isinstance(layer, NarrowLinear):
            level_NK, scale_NG = layer.narrow.whole().to(torch.int8), layer.narrow.field("scale").view(layer.out_features, -1)
        else:
            level_NK, scale_NG = levels(layer.packed, torch.arange(layer.out_features))
        group = 0 if rows or layer.kind == "dual4" or layer.group not in (32, 128) else layer.group
        like: Any = stock.get_submodule(name)
        n, k = like.out_features, like.in_features
        if group and (k % group or layer.in_features % group):
            notes.append(f"{name}: groups of {group} do not fill its {layer.in_features} inputs, so it becomes floats")
            continue
        level_NK = F.pad(level_NK, (0, k - layer.in_features, 0, n - layer.out_features))
        scale_NG = F.pad(scale_NG, (0, (k // group if group else 1) - scale_NG.shape[1], 0, n - layer.out_features), value=1.0)
        found[name] = (level_NK, scale_NG, BITS[layer.kind], group)
    return found


def _compressed(whole: dict[str, Whole], stock: Decoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """compressed-tensors, pack-quantized: codes of b bits in int32, along the inputs, low bits first."""
    tensors, groups = {}, {}  # type: dict[str, Tensor], dict[tuple[int, int], list[str]]
    place = _places(stock)
    for name, (level_NK, scale_NG, bits, group) in whole.items():
        tensors |= {f"{place[name]}.weight_packed": words(level_NK.int() + 2 ** (bits - 1), bits),
                    f"{place[name]}.weight_scale": scale_NG, f"{place[name]}.weight_shape": torch.tensor(level_NK.shape)}
        groups.setdefault((bits, group), []).append(place[name])
    left = sorted(set(place.values()) - {name for held in groups.values() for name in held} | {"lm_head"})
    said = {f"group_{i}": {"targets": held, "input_activations": None, "output_activations": None, "weights": {
        "num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, "strategy": "group" if group else "channel",
        "group_size": group or None}} for i, ((bits, group), held) in enumerate(sorted(groups.items()))}
    return tensors, {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
                     "config_groups": said, "ignore": left}


def _gptq(whole: dict[str, Whole], stock: Decoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """GPTQ, version 1: codes packed along the inputs, zeros one less than they are, inputs in their order."""
    kinds, place = {(bits, group) for _, _, bits, group in whole.values()}, _places(stock)
    if len(kinds) > 1 or whole.keys() != place.keys() - {HEAD}:
        raise UnsupportedError("the GPTQ layout has one width and one group for all layers: take compressed-tensors")
    ((bits, group),) = kinds
    if bits == 3:
        raise UnsupportedError("3-bit weights are packed in ways of each program's own by GPTQ: take compressed-tensors")
    tensors: dict[str, Tensor] = {}
    for name, (level_NK, scale_NG, _, _) in whole.items():
        n, k = level_NK.shape
        if k * bits % 32 or n * bits % 32:
            raise UnsupportedError(f"{name}: {n} x {k} weights do not fill words of 32 bits: take compressed-tensors")
        zero_GN = torch.full((scale_NG.shape[1], n), 2 ** (bits - 1) - 1)
        made = {"qweight": words(level_NK.int() + 2 ** (bits - 1), bits).T, "qzeros": words(zero_GN, bits),
                "scales": scale_NG.T, "g_idx": (torch.arange(k) // (group or k)).int()}
        tensors |= {f"{place[name]}.{key}": tensor for key, tensor in made.items()}
    return tensors, json.loads(GPTQ) | {"bits": bits, "group_size": group or -1, "damp_percent": 0.01}


def words(code_NK: Tensor, bits: int) -> Tensor:
    """Codes [N, K] of so many bits in int32 words [N, W], each row's one after another, low bits first."""
    count = -(-code_NK.shape[1] * bits // 32)
    each = (F.pad(code_NK, (0, -code_NK.shape[1] % 32)).long()[..., None] >> torch.arange(bits)) & 1
    bit_NWB = each.flatten(1).view(len(code_NK), -1, 32)
    return (bit_NWB << torch.arange(32)).sum(-1).to(torch.int32)[:, :count]  # the highest bit is the sign


def _places(stock: Decoder) -> dict[str, str]:
    """Where each linear layer stands in the checkpoint. Raises UnsupportedError for layouts that fuse some."""
    linear = [name for name, module in stock.named_modules() if isinstance(module, nn.Linear)]
    table = names.layout([f"{name}.weight" for name in linear], stock.config.family)
    if any(len(members) > 1 for members in table.values()):
        raise UnsupportedError(f"{stock.config.family} checkpoints hold several matrices in one, packed or not: take plain")
    return {members[0].removesuffix(".weight"): stored.removesuffix(".weight") for stored, members in table.items()}


def _write(model: Decoder, stock: Decoder, folder: Path, overwrite: bool, whole: dict[str, Whole], tensors: dict[str, Tensor],
           settings: dict[str, Any]) -> None:
    checkpoint.check_free(folder, overwrite)
    rest = {name: weight.detach() for name, weight in stock.named_parameters() if name.removesuffix(".weight") not in whole}
    half = all(torch.equal(weight.half().float(), weight.float()) for weight in rest.values())
    dtype = torch.float16 if half else torch.float32
    cast: Callable[[Tensor], Tensor] = lambda t: (t.to(dtype) if t.is_floating_point() else t).contiguous()
    table = names.layout(rest, stock.config.family)
    held = {stored: torch.cat([rest[name] for name in members]) for stored, members in table.items()}
    with writing(folder) as draft:
        checkpoint.write_config(stock, draft, dtype, model.folder, {})
        raw = json.loads((draft / "config.json").read_text()) | {"quantization_config": settings}
        (draft / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        save_file({name: cast(tensor) for name, tensor in (held | tensors).items()}, draft / WEIGHTS, metadata={"format": "pt"})
