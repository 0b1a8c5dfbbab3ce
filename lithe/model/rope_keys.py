"""Rotary settings in config.json: transformers 5's rope_parameters, or the older rope_theta and rope_scaling."""

from __future__ import annotations

import math

from lithe.errors import FormatError
from lithe.model.config import Rope
from lithe.model.header import setting

SLIDING, GLOBAL = "sliding_attention", "full_attention"
KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
FIELDS = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
          "original_max_position_embeddings": "original_context", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
          "attention_factor": "attention_factor", "truncate": "truncate"}
OF_KIND = {"default": (), "linear": ("factor",),
           "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
           "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate")}
SORTS = {"original_max_position_embeddings": "size", "truncate": "flag"}


def read(raw: dict, name: str, family, context: int) -> tuple[Rope, Rope | None]:
    """The settings of all layers, and those of windowed layers in families where they differ."""
    older, newer = raw.get("rope_scaling"), raw.get("rope_parameters")
    given = older or newer or {}
    if not isinstance(given, dict) or (older and newer and older != newer):
        raise FormatError("config.json: rope settings must be one object, in rope_parameters or in rope_scaling")
    if any(key in raw and raw[key] != given.get(key, raw[key]) for key in ("rope_theta", "partial_rotary_factor")):
        raise FormatError("config.json: rope_theta or partial_rotary_factor is given twice, with two values")
    outer = {"rope_theta": raw.get("rope_theta", family.theta), "partial_rotary_factor": raw.get("partial_rotary_factor")}
    if not family.local_theta:
        return _rope(outer | given, name, family, context), None
    nested = given if given.keys() & {SLIDING, GLOBAL} else {GLOBAL: given}
    if nested.keys() - {SLIDING, GLOBAL} or not all(isinstance(value, dict) for value in nested.values()):
        raise FormatError(f"config.json: rope_parameters may hold {GLOBAL} and {SLIDING}, each an object, not {given!r}")
    local = outer | {"rope_theta": raw.get("rope_local_base_freq", family.local_theta)}
    return (_rope(outer | nested.get(GLOBAL, {}), name, family, context),
            _rope(local | nested.get(SLIDING, {}), name, family, context))


def _rope(given: dict, name: str, family, context: int) -> Rope:
    older = given.pop("type", None)
    kind = given.pop("rope_type", None) or older or "default"
    if kind not in family.ropes:
        raise FormatError(f"config.json: the {name} architecture with rope type {kind!r} is not supported; "
                          f"lithe knows {', '.join(family.ropes)}")
    wide, narrow = (setting(given, key, "number", None) if kind == "yarn" else None for key in ("mscale", "mscale_all_dim"))
    unknown = given.keys() - {"rope_theta", "partial_rotary_factor", *OF_KIND[kind]}
    unknown -= {"mscale", "mscale_all_dim"} if kind == "yarn" else set()
    if unknown:
        raise FormatError(f"config.json: rope type {kind!r} of the {name} architecture has no {', '.join(sorted(unknown))}")
    part = setting(given, "partial_rotary_factor", "number", None) or 1.0
    if part > 1 or (part < 1 and not family.partial):
        raise FormatError(f"config.json: the {name} architecture with partial_rotary_factor {part} is not supported")
    given.setdefault("original_max_position_embeddings", context)
    settings = {"kind": kind, "part": part, "theta": setting(given, "rope_theta", "number")}
    for key in OF_KIND[kind]:
        needed = key in OF_KIND["llama3"]
        if needed or given.get(key) is not None:
            settings[FIELDS[key]] = setting(given, key, SORTS.get(key, "number"))
    if wide and narrow and "attention_factor" not in settings:  # as in DeepSeek's form of YaRN
        growth = 0.1 * math.log(max(settings["factor"], 1.0))
        settings["attention_factor"] = (wide * growth + 1) / (narrow * growth + 1)
    return Rope(**settings)


def write(rope: Rope, local: Rope | None, family) -> dict:
    """The entries of config.json: the older form, which every reader knows, or the newer where only that can say it."""

    def scaling(rope: Rope) -> dict:
        said = {key: getattr(rope, FIELDS[key]) for key in OF_KIND[rope.kind]}
        return {"rope_type": rope.kind, **{key: value for key, value in said.items() if value is not None}}

    if local is not None and local.kind != "default":
        return {"rope_parameters": {name: scaling(one) | {"rope_theta": one.theta}
                                    for name, one in ((GLOBAL, rope), (SLIDING, local))}}
    keys = {"rope_theta": rope.theta, "rope_scaling": None if rope.kind == "default" else scaling(rope)}
    if family.partial:
        keys["partial_rotary_factor"] = rope.part
    if family.local_theta:
        keys["rope_local_base_freq"] = local.theta if local else family.local_theta
    return keys
