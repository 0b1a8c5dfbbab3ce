"""Packed weights in model folders: which layers hold them, what they are called there, and how they come into a model.

In a folder with whole-number weights every tensor has the decoder's own name, a packed matrix `<layer>.data` in the bytes that
kernels/pack.py lays out, and lithe.json says of each such layer its kind and group. A tied model has its one matrix as lm_head.
"""

from __future__ import annotations

from torch import Tensor, nn

from lithe.errors import FormatError, UsageError
from lithe.kernels.pack import BLOCK, LEVELS, Packed
from lithe.model.decoder import Decoder
from lithe.model.linear import PackedEmbedding, PackedLinear
from lithe.model.narrow import KNOWN, Narrow, bytes_of, layer as layer_of
from lithe.model.site import Site

Kinds = dict[str, tuple[str, int]]  # kind and group of each packed layer
HEAD, EMBEDDING = "lm_head", "embed_tokens.weight"


def linears(model: Decoder) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every layer that can be packed, a tied output matrix as lm_head."""
    found = {name: (module.out_features, module.in_features) for name, module in model.named_modules()
             if isinstance(module, nn.Linear)}
    return found | {HEAD: (model.config.vocab, model.config.width)} if model.lm_head is None else found


def layers(model: Decoder) -> dict[str, PackedLinear]:
    """The packed layers of a model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}


def all_as(model: Decoder, kind: str, group: int) -> Kinds:
    """Every layer packed alike; groups as kernels/pack.py's `pack` takes them, -1 for all inputs."""
    whole = {-1: lambda inputs: -(-inputs // BLOCK) * BLOCK, 0: lambda inputs: 32 if kind in LEVELS else 0}
    return {name: (kind, whole.get(group, lambda inputs: group)(k)) for name, (_, k) in linears(model).items()}


def weight_of(model: Decoder, layer: str) -> str:
    """The name that a layer's plain matrix has."""
    return EMBEDDING if layer == HEAD and model.config.tied else f"{layer}.weight"


def stored(raw: object, model: Decoder, where: str) -> Kinds:
    """What lithe.json says of packed layers, held against a plain model. Raises FormatError for what cannot be."""
    known = linears(model)
    if not isinstance(raw, dict):
        raise FormatError(f"{where}: packed must be an object, not {raw!r:.80}")
    for name, entry in raw.items():
        if name not in known:
            raise FormatError(f"{where}: packed names {name!r:.80}, which is no linear layer of this model")
        if not isinstance(entry, dict) or entry.keys() != {"kind", "group"} or entry["kind"] not in KNOWN:
            raise FormatError(f"{where}: {name} must have a kind ({', '.join(KNOWN)}) and a group, not {entry!r:.80}")
        try:
            if type(entry["group"]) is not int:
                raise UsageError(f"a group of {entry['group']!r:.80} is no whole number")
            bytes_of(entry["kind"], *known[name], entry["group"])
        except UsageError as problem:
            raise FormatError(f"{where}: {name}: {problem}") from None
    return {name: (entry["kind"], entry["group"]) for name, entry in raw.items()}


def shapes(model: Decoder, kinds: Kinds) -> dict[str, tuple[int, ...]]:
    """Every tensor of a packed folder and its shape, for a plain model of its config."""
    known, away = linears(model), {weight_of(model, name) for name in kinds}
    plain = {name: tuple(weight.shape) for name, weight in model.named_parameters() if name not in away}
    return plain | {f"{name}.data": (bytes_of(kind, *known[name], group),) for name, (kind, group) in kinds.items()}


def adopt(model: Decoder, packed: dict[str, Packed | Narrow], state: dict[str, Tensor]) -> None:
    """Swap packed matrices in for a model's linear layers, with the biases found in `state`."""
    for name, matrix in packed.items():
        layer = layer_of(matrix, state.get(f"{name}.bias"))
        if name == HEAD and model.lm_head is None:
            model.lm_head = layer
            Site("embed_tokens", model).swap(PackedEmbedding(layer, state["norm.weight"].dtype))
        else:
            Site(name, model).swap(layer)


def contents(model: Decoder) -> tuple[dict[str, Tensor | PackedLinear], Kinds]:
    """What a folder must hold of a model, by name, and which layers stay packed there: none of them where all hold floats,
    which unpack to what they were; then a layer stands for its matrix."""
    state: dict[str, Tensor | PackedLinear] = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    found = layers(model)
    if any(layer.kind not in ("fp32", "bf16") for layer in found.values()):
        return state, {name: (layer.kind, layer.group) for name, layer in found.items()}
    for name, layer in found.items():
        del state[f"{name}.data"]
        state[weight_of(model, name)] = layer
    return state, {}


def shape(value: Tensor | PackedLinear) -> tuple[int, ...]:
    """Of a tensor, or of the matrix that a layer stands for."""
    return (value.out_features, value.in_features) if isinstance(value, PackedLinear) else tuple(value.shape)


def value(held: Tensor | PackedLinear) -> Tensor:
    """A tensor as it is, a layer's matrix as a plain one."""
    return held.weight if isinstance(held, PackedLinear) else held
