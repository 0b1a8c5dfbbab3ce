"""From a masked model to a smaller one: units, halves and layers that are zero are left out. Axes: U units."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lithe.compress.change import Change, lanes
from lithe.compress.groups import Group
from lithe.errors import UnsupportedError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.linear import Factored, PackedLinear, Ranged

CARRIED = ("tokenizer", "source", "folder", "offline", "receipts", "settings", "token_ids")


def copied(model: Decoder) -> Decoder:
    """A copy whose weights are its own. The tokenizer is shared: it holds locks."""
    shared = (model.tokenizer, model.folder)
    return copy.deepcopy(model, {id(one): one for one in shared if one is not None})


def cut(model: Decoder, done: Sequence[tuple[Group, Change]]) -> Decoder:
    """A new model without the units that the changes let go. It computes what the masked one does.

    The masked model must be one of plain linear layers: cut first, pack after.
    """
    kept = [(group, change.kept) for group, change in done if change.kept is not None and len(change.kept) < group.units]
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for group, kept_U in kept:
        for site in group.sites:
            _slice(state, model, group, kept_U, site)
    config, stay = _config(model, kept)
    for number, block in enumerate(model.layers):
        for half, there in (("self_attn", config[0][number]), ("mlp", config[2][number])):
            if not there and getattr(block, half) is not None:
                state = {name: t for name, t in state.items() if not name.startswith(f"layers.{number}.{half}.")}
    settings = _settings(model, config, stay, state)
    renamed = {_moved(name, stay): tensor for name, tensor in state.items() if _moved(name, stay)}
    return remade(model, settings, renamed)


def renamed(model: Decoder, done: Sequence[tuple[Group, Change]]) -> list[tuple[Group, Change]]:
    """Changes by the names that their sites have once units are cut; those of layers that are gone are left out."""
    stay = _config(model, [(group, change.kept) for group, change in done if change.kept is not None])[1]
    by_site = ("weights", "biases", "levels", "pairs", "packed", "ranges")
    moved: Any = lambda change: {name: {_moved(site, stay): held for site, held in getattr(change, name).items()}
                                 for name in by_site}
    return [(group, dataclasses.replace(change, **moved(change))) for group, change in done if group.layer in stay]


def remade(model: Decoder, config: Config, state: dict[str, Tensor]) -> Decoder:
    """A model of these settings and weights, with all else that `model` carries."""
    with torch.device("meta"):
        new = Decoder(config)
    new.load_state_dict(state, assign=True)
    for name in CARRIED:
        setattr(new, name, getattr(model, name))
    return new.eval()


def _slice(state: dict[str, Tensor], model: Decoder, group: Group, kept_U: Tensor, site: str) -> None:
    module: Any = model.get_submodule(site)
    if isinstance(module, PackedLinear | Factored | Ranged):
        raise UnsupportedError(f"{site} is packed or factored already: cut before that")
    rows, columns = lanes(model, group, kept_U, site)
    state[f"{site}.weight"] = state[f"{site}.weight"].detach()[rows][:, columns].contiguous()
    if module.bias is not None:
        state[f"{site}.bias"] = state[f"{site}.bias"][rows].contiguous()


def _config(model: Decoder, kept: list[tuple[Group, Tensor]]) -> tuple[list[list[int]], list[int]]:
    """Heads, key-value heads and FFN width of each layer, and which layers stay."""
    shapes = [model.config.layer(i) for i in range(model.config.layers)]
    heads, kv_heads, ffn = [s.heads for s in shapes], [s.kv_heads for s in shapes], [s.ffn for s in shapes]
    for group, kept_U in kept:
        i, count = group.layer, len(kept_U)
        if group.unit == "head":
            heads[i], kv_heads[i] = heads[i] // max(1, kv_heads[i]) * count, count
        elif group.unit == "channel":
            ffn[i] = count
        else:
            if group.unit == "layer" or group.name.endswith("self_attn"):
                heads[i], kv_heads[i] = 0, 0
            if group.unit == "layer" or group.name.endswith("mlp"):
                ffn[i] = 0
    stay = [i for i in range(len(shapes)) if heads[i] or ffn[i]]
    return [heads, kv_heads, ffn], stay or [0]


def _settings(model: Decoder, widths: list[list[int]], stay: list[int], state: dict[str, Tensor]) -> Config:
    """The config of what stays; counts that agree in all layers are one number, which stock layouts can say."""
    one = lambda values: values[0] if len(set(values)) == 1 else tuple(values)
    old, picked = model.config, [[row[i] for i in stay] for row in widths]
    changes: dict[str, Any] = {"layers": len(stay), "heads": one(picked[0]), "kv_heads": one(picked[1]),
                               "head_dim": old.head_dim}
    changes |= {} if old.experts else {"ffn": one(picked[2])}
    for name in ("windowed", "expert_layers"):
        if isinstance(flags := getattr(old, name), tuple):
            changes[name] = tuple(flags[i] for i in stay)
    for name in ("ranks", "inputs", "blocks"):
        changes[name] = tuple(sorted((_moved(site, stay), number) for site, number in getattr(old, name) if _moved(site, stay)))
    return old.replace(**changes)


def _moved(name: str, stay: list[int]) -> str:
    """A tensor's name once only these layers stay; "" where it goes."""
    if not name.startswith("layers."):
        return name
    _, number, rest = name.split(".", 2)
    return f"layers.{stay.index(int(number))}.{rest}" if int(number) in stay else ""


def with_biases(model: Decoder, sites: Sequence[str]) -> Decoder:
    """The same model in a config that has biases where these sites have them, zero at the others of their kind."""
    config = model.config
    changes = {"out_bias": config.out_bias or any(site.endswith("o_proj") for site in sites),
               "mlp_bias": config.mlp_bias or any(".mlp." in site for site in sites)}
    changes["qkv_bias"] = config.qkv_bias or any(site.endswith(("q_proj", "k_proj", "v_proj")) for site in sites)
    model.config = config.replace(**changes)
    for name, module in list(model.named_modules()):
        leaf = name.rpartition(".")[2]
        wanted = (changes["out_bias"] and leaf == "o_proj") or (changes["mlp_bias"] and ".mlp." in name) \
            or (changes["qkv_bias"] and leaf in ("q_proj", "k_proj", "v_proj"))
        if wanted and isinstance(module, nn.Linear) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_features, dtype=module.weight.dtype), requires_grad=False)
    return model
