"""Packed weights in model folders: which layers hold them, what they are called there, and how they come into a model.

In a folder with packed weights every tensor has the decoder's own name, a packed matrix `<layer>.data` in the bytes that
kernels/pack.py, kernels/sparse.py or narrow.py lays out, and lithe.json says of each such layer its kind, and its group or how
many weights are left. A tied model has its one matrix as lm_head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lithe.errors import FormatError, UsageError
from lithe.kernels import sparse
from lithe.kernels.pack import BLOCK, LEVELS, Packed
from lithe.kernels.sparse import Sparse
from lithe.model.decoder import Decoder
from lithe.model.linear import PackedEmbedding, PackedLinear, SparseLinear
from lithe.model.narrow import KNOWN, Narrow, bytes_of, layer as layer_of, matrix as narrow_matrix
from lithe.model.site import Site

Kinds = dict[str, tuple[str, int]]  # kind and group of each packed layer, or kind and count of a sparse one
Layer = PackedLinear | SparseLinear
Matrix = Packed | Narrow | Sparse
ALL_KINDS = (*KNOWN, *sparse.KINDS)
HEAD, EMBEDDING = "lm_head", "embed_tokens.weight"


def linears(model: Decoder) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every layer that can be packed, a tied output matrix as lm_head."""
    found = {name: (module.out_features, module.in_features) for name, module in model.named_modules()
             if isinstance(module, nn.Linear)}
    return found | {HEAD: (model.config.vocab, model.config.width)} if model.lm_head is None else found


def layers(model: Decoder) -> dict[str, Layer]:
    """The packed and the sparse layers of a model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Layer)}


def is_exact(kinds: Kinds) -> bool:
    """Whether layers of these kinds give what plain ones in float32 would."""
    return all(kind in (*sparse.KINDS, "fp32") for kind, _ in kinds.values())


def matrix(data: Tensor, kind: str, n: int, k: int, number: int) -> Matrix:
    """Stored bytes as a matrix. number: the group, or how many weights are left. Raises FormatError where they are none."""
    try:
        return (Sparse if kind in sparse.KINDS else narrow_matrix)(data, kind, n, k, number)
    except UsageError as problem:
        raise FormatError(str(problem)) from None


def data_size(kind: str, n: int, k: int, number: int) -> int:
    """Bytes of such a matrix. Raises UsageError for numbers that cannot be."""
    return (sparse.size if kind in sparse.KINDS else bytes_of)(kind, n, k, number)


def save_zeros(model: Decoder, dtype: torch.dtype) -> dict[str, SparseLinear]:
    """Put sparse layers in the place of linear layers of a model's blocks where folders in this precision are smaller so."""
    found = {name: SparseLinear.of(module, dtype) for name, module in model.named_modules()
             if isinstance(module, nn.Linear) and name.startswith("layers.")}
    made = {name: layer for name, layer in found.items() if layer is not None}
    for name, layer in made.items():
        Site(name, model).swap(layer)
    return made


def all_as(model: Decoder, kind: str, group: int) -> Kinds:
    """Every layer packed alike; groups as kernels/pack.py's `pack` takes them, -1 for all inputs."""
    whole = {-1: lambda inputs: -(-inputs // BLOCK) * BLOCK, 0: lambda inputs: 32 if kind in LEVELS else 0}
    return {name: (kind, whole.get(group, lambda inputs: group)(k)) for name, (_, k) in linears(model).items()}


def fill_zeros(model: Decoder) -> Decoder:
    """The same model with plain layers where it has sparse ones."""
    for name, layer in layers(model).items():
        if isinstance(layer, SparseLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(layer.weight.to(model.dtype), requires_grad=False)
            if layer.bias is not None:
                plain.bias = nn.Parameter(layer.bias.to(model.dtype), requires_grad=False)
            Site(name, model).swap(plain)
    return model


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
        kind = entry.get("kind") if isinstance(entry, dict) else None
        word = _word(kind) if isinstance(kind, str) else ""
        if not isinstance(entry, dict) or kind not in ALL_KINDS or entry.keys() != {"kind", word}:
            raise FormatError(f"{where}: {name} must have a kind ({', '.join(ALL_KINDS)}) and a group, or a count "
                              f"where it is sparse, not {entry!r:.80}")
        try:
            if type(entry[word]) is not int:
                raise UsageError(f"a {word} of {entry[word]!r:.80} is no whole number")
            data_size(kind, *known[name], entry[word])
        except UsageError as problem:
            raise FormatError(f"{where}: {name}: {problem}") from None
    return {name: (entry["kind"], entry[_word(entry["kind"])]) for name, entry in raw.items()}


def described(kinds: Kinds) -> dict[str, dict[str, str | int]]:
    """What `stored` reads."""
    return {name: {"kind": kind, _word(kind): number} for name, (kind, number) in kinds.items()}


def _word(kind: str) -> str:
    return "count" if kind in sparse.KINDS else "group"


def shapes(model: Decoder, kinds: Kinds) -> dict[str, tuple[int, ...]]:
    """Every tensor of a packed folder and its shape, for a plain model of its config."""
    known, away = linears(model), {weight_of(model, name) for name in kinds}
    plain = {name: tuple(weight.shape) for name, weight in model.named_parameters() if name not in away}
    return plain | {f"{name}.data": (data_size(kind, *known[name], group),) for name, (kind, group) in kinds.items()}


def adopt(model: Decoder, packed: dict[str, Matrix], state: dict[str, Tensor]) -> None:
    """Swap packed matrices in for a model's linear layers, with the biases found in `state`."""
    for name, found in packed.items():
        bias = state.get(f"{name}.bias")
        layer = SparseLinear(found, bias) if isinstance(found, Sparse) else layer_of(found, bias)
        if name == HEAD and model.lm_head is None:
            if isinstance(layer, SparseLinear):
                raise FormatError(f"{name}: an output matrix that is the embedding too cannot be sparse")
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
        few = {name: layer for name, layer in found.items() if isinstance(layer, SparseLinear)}
        state |= {f"{name}.data": layer.stored.data for name, layer in few.items()}
        return state, {name: (layer.kind, layer.count if isinstance(layer, SparseLinear) else layer.group)
                       for name, layer in found.items()}
    for name, layer in found.items():
        assert isinstance(layer, PackedLinear)
        del state[f"{name}.data"]
        state[weight_of(model, name)] = layer
    return state, {}


def shape(value: Tensor | PackedLinear) -> tuple[int, ...]:
    """Of a tensor, or of the matrix that a layer stands for."""
    return (value.out_features, value.in_features) if isinstance(value, PackedLinear) else tuple(value.shape)


def value(held: Tensor | PackedLinear) -> Tensor:
    """A tensor as it is, a layer's matrix as a plain one."""
    return held.weight if isinstance(held, PackedLinear) else held
