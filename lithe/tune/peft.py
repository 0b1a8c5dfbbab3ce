"""Writing PEFT's adapter folders: what its layout can say of our parts. Axes as in model/lowrank.py and model/prefixed.py.

Facts of the layout were read in PEFT 0.21: tuners/{lora,adalora,ia3,prefix_tuning,prompt_tuning} and utils/save_and_load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lithe.model.adapted import Part
from lithe.model.decoder import Decoder
from lithe.model.lowrank import Directed, LowRank, Singular
from lithe.model.parts import Scale
from lithe.model.prefixed import Prefix, Prompt
from lithe.tune.targets import checkpoint_names

ROOT = "base_model.model."
VERSION = "0.21.2"  # of PEFT whose layout this is
ROWS = "prompt_embeddings"

def express(parts: Mapping[str, Part], model: Decoder) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Config and tensors as PEFT would write them, or None where it has no words for these parts on this model."""
    kinds = {type(part) for part in parts.values()}
    write = WRITERS.get(kinds.pop()) if len(kinds) == 1 else None
    found = None if write is None else write(parts, model)
    if found is None:
        return None
    config, tensors = found
    common = {"auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True, "peft_version": VERSION,
              "revision": None, "task_type": "CAUSAL_LM", "modules_to_save": None}
    return common | config, tensors


def _named(parts: Mapping[str, Part], model: Decoder) -> dict[str, Part] | None:
    """The parts by the checkpoint's names; None where a layout fuses or stacks layers that we keep apart."""
    alone = {sites[0]: name for name, sites in checkpoint_names(model).items() if len(sites) == 1 and "experts" not in name}
    return {alone[site]: part for site, part in parts.items()} if parts.keys() <= alone.keys() else None


def _targets(chosen: list[str], every: list[str]) -> list[str]:
    """Last parts of names where those say it exactly, else whole names."""
    leaf = lambda name: name.rpartition(".")[2]
    leaves = sorted({leaf(name) for name in chosen})
    return leaves if sorted(chosen) == sorted(name for name in every if leaf(name) in leaves) else sorted(chosen)


def _write_low_rank(parts: Mapping[str, Any], model: Decoder) -> tuple[dict, dict] | None:
    by_name: dict[str, Any] | None = _named(parts, model)
    if by_name is None or len({(part.root, part.dropout) for part in by_name.values()}) > 1:
        return None
    one, directed = next(iter(by_name.values())), isinstance(next(iter(by_name.values())), Directed)
    rank = Counter(part.rank for part in by_name.values()).most_common(1)[0][0]
    alpha = Counter(part.alpha for part in by_name.values()).most_common(1)[0][0]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": _short(alpha), "lora_dropout": one.dropout, "bias": "none",
              "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": one.root, "use_dora": directed,
              "target_modules": _targets(list(by_name), list(checkpoint_names(model))),
              "rank_pattern": {name: part.rank for name, part in by_name.items() if part.rank != rank},
              "alpha_pattern": {name: _short(part.alpha) for name, part in by_name.items() if part.alpha != alpha}}
    tensors: dict[str, Tensor] = {}
    for name, part in by_name.items():
        tensors |= {f"{ROOT}{name}.lora_A.weight": part.a, f"{ROOT}{name}.lora_B.weight": part.b}
        if directed:
            tensors[f"{ROOT}{name}.lora_magnitude_vector"] = part.magnitude
    return config, tensors


def _write_singular(parts: Mapping[str, Any], model: Decoder) -> tuple[dict, dict] | None:
    by_name: dict[str, Any] | None = _named(parts, model)
    if by_name is None or len({(part.alpha, part.over, part.dropout) for part in by_name.values()}) > 1:
        return None
    one = next(iter(by_name.values()))
    if one.alpha <= 0 or one.alpha != int(one.alpha):
        return None
    pattern = {f"{name}.lora_E": [i < part.rank for i in range(part.over)] for name, part in by_name.items()}
    config = {"peft_type": "ADALORA", "init_r": one.over, "target_r": max(1, sum(map(sum, pattern.values())) // len(pattern)),
              "lora_alpha": int(one.alpha), "lora_dropout": one.dropout, "bias": "none", "fan_in_fan_out": False,
              "init_lora_weights": True, "total_step": 1, "tinit": 0, "tfinal": 0, "deltaT": 1,
              "target_modules": _targets(list(by_name), list(checkpoint_names(model))),
              "rank_pattern": None if all(map(all, pattern.values())) else pattern}
    tensors: dict[str, Tensor] = {}
    for name, part in by_name.items():
        tensors |= {f"{ROOT}{name}.lora_A": part.a, f"{ROOT}{name}.lora_B": part.b}
        tensors[f"{ROOT}{name}.lora_E"] = part.values[:, None]
    return config, tensors


def _write_scale(parts: Mapping[str, Any], model: Decoder) -> tuple[dict, dict] | None:
    by_name: dict[str, Any] | None = _named(parts, model)
    if by_name is None:
        return None
    targets, every = _targets(list(by_name), list(checkpoint_names(model))), list(checkpoint_names(model))
    inner = [name for name, part in by_name.items() if part.where == "in"]
    feeding = _targets(inner, every) if inner else []
    if not set(feeding) <= set(targets):
        targets, feeding = sorted(by_name), sorted(inner)
    config = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": feeding, "fan_in_fan_out": False,
              "init_ia3_weights": True}
    column = lambda part: part.vector[None] if part.where == "in" else part.vector[:, None]
    return config, {f"{ROOT}{name}.ia3_l": column(part) for name, part in by_name.items()}


def _write_rows(parts: Mapping[str, Any], model: Decoder) -> tuple[dict, dict] | None:
    every = [f"layers.{i}.self_attn" for i in range(model.config.layers)]
    shapes = {tuple(part.k.shape) for part in parts.values()}
    if list(parts) != every or len(shapes) > 1:
        return None
    G, P, D = shapes.pop()
    rows = torch.stack([side for part in parts.values() for side in (part.k, part.v)])  # [2 layers, G, P, D]
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": P, "token_dim": G * D, "num_attention_heads": G,
              "num_layers": len(parts), "num_transformer_submodules": 1, "encoder_hidden_size": G * D,
              "prefix_projection": False}
    return config, {ROWS: rows.permute(2, 0, 1, 3).reshape(P, -1)}


def _write_embeds(parts: Mapping[str, Any], model: Decoder) -> tuple[dict, dict] | None:
    if model.config.embed_scale != 1.0:
        return None  # whether a library scales given embeddings differs between its versions
    (part,) = parts.values()
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(part.embeds), "token_dim": part.embeds.shape[1],
              "num_attention_heads": model.config.heads, "num_layers": model.config.layers, "num_transformer_submodules": 1,
              "prompt_tuning_init": "RANDOM"}
    return config, {ROWS: part.embeds}


def _short(number: float) -> float:
    return int(number) if number == int(number) else number


WRITERS: dict[type, Callable] = {LowRank: _write_low_rank, Directed: _write_low_rank, Singular: _write_singular,
                                 Scale: _write_scale, Prefix: _write_rows, Prompt: _write_embeds}
