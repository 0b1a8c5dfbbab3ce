"""Reading PEFT's adapter folders: every key of a config is used, known to be without effect, or refused by name.

What the tensors are decides; a config that says otherwise is an error. Axes: N outputs, K inputs, R rank, G key-value heads,
P rows before the text, D head width.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lithe.errors import FormatError, UnsupportedError
from lithe.model.adapted import Part
from lithe.model.decoder import Decoder
from lithe.model.header import setting, some
from lithe.model.lowrank import Directed, LowRank, Singular
from lithe.model.parts import Scale
from lithe.model.prefixed import Prefix, Prompt
from lithe.tune.peft import ROOT, ROWS
from lithe.tune.targets import checkpoint_names, linears

# Keys that change nothing of a trained adapter: where it came from, how it was started, how to go on training it.
SILENT = frozenset((
    "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "peft_version", "inference_mode", "task_type",
    "target_modules", "feedforward_modules", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_dropout",
    "init_ia3_weights", "init_weights", "megatron_core", "qalora_group_size", "beta1", "beta2", "deltaT", "orth_reg_weight",
    "target_r", "tfinal", "tinit", "total_step", "encoder_hidden_size", "prefix_projection", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path", "runtime_config"))
SHAPE = frozenset(["num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules"])
USED = {
    "LORA": frozenset(("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights",
                       "bias")),
    "ADALORA": frozenset(["r", "init_r", "lora_alpha", "rank_pattern", "init_lora_weights", "bias"]),
    "IA3": frozenset(),
    "PREFIX_TUNING": SHAPE,
    "PROMPT_TUNING": SHAPE,
}
STARTS = (True, False, "gaussian", "eva", "orthogonal")  # those that leave the base's weights as they were
PATTERN = re.compile(r"[\w.\\^$|*+\[\]()?-]{1,300}")
Parts = dict[str, Part]


def understand(where: Path, config: dict[str, Any], tensors: dict[str, Tensor], model: Decoder) -> Parts:
    """The parts that a config and its tensors describe. Raises UnsupportedError for what lithe has no part for."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in USED:
        raise UnsupportedError(f"{where}: peft_type {kind!r:.80} is none of {', '.join(USED)}")
    for key, value in config.items():
        if key not in SILENT | USED[kind] and value not in (None, False, [], {}, ""):
            cure = "; merge those modules into the base with peft first" if key == "modules_to_save" else ""
            raise UnsupportedError(f"{where}: {key!r:.80} is {value!r:.80}, which lithe does not know how to honour{cure}")
    if config.get("task_type") not in (None, "CAUSAL_LM") or config.get("bias", "none") != "none":
        raise UnsupportedError(f"{where}: task_type must be CAUSAL_LM, and bias \"none\"")
    if config.get("init_lora_weights", True) not in STARTS:
        raise UnsupportedError(f"{where}: init_lora_weights {config['init_lora_weights']!r:.80} changed the base's weights; "
                               "have peft convert it to an adapter of the original base")
    if not tensors:
        raise FormatError(f"{where}: there are no tensors beside it")
    parts = READERS[kind](where, config, tensors, model)
    _as_targeted(where, config, parts, model)
    return parts


def _low_rank(where: Path, config: dict[str, Any], tensors: dict[str, Tensor], model: Decoder) -> Parts:
    get = lambda key, kind, default: setting(config, key, kind, default, str(where))
    rank, alpha = get("r", "size", 8), get("lora_alpha", "amount", 8)
    directed, root = get("use_dora", "flag", False), get("use_rslora", "flag", False)
    dropout = get("lora_dropout", "amount", 0.0)
    tails = {"lora_A.weight": "a", "lora_B.weight": "b"}
    if directed:
        tails |= {"lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m"}
    ranks, alphas = _patterns(where, config, "rank_pattern"), _patterns(where, config, "alpha_pattern")
    parts: Parts = {}
    for name, held in _by_module(where, tensors, tails, "abm" if directed else "ab").items():
        said, given = _match(ranks, name, rank), _match(alphas, name, alpha)
        if held["a"].dim() != 2 or len(held["a"]) != said:
            raise FormatError(f"{where}: {name} has a factor of {list(held['a'].shape)}, but rank {said!r:.40} is said")
        made = {"alpha": given, "root": root, "dropout": float(dropout)}
        for site, rows in _sites(where, name, model):
            own = {"a": held["a"], "b": held["b"][rows]} | ({"magnitude": held["m"].flatten()[rows]} if directed else {})
            parts[site] = _rebuilt(where, name, Directed if directed else LowRank, made, own)
    return parts


def _singular(where: Path, config: dict[str, Any], tensors: dict[str, Tensor], model: Decoder) -> Parts:
    get = lambda key, kind, default: setting(config, key, kind, default, str(where))
    over, alpha, dropout = get("init_r", "size", 12), get("lora_alpha", "amount", 8), get("lora_dropout", "amount", 0.0)
    kept = _patterns(where, config, "rank_pattern")
    parts: Parts = {}
    for name, held in _by_module(where, tensors, {"lora_A": "a", "lora_B": "b", "lora_E": "e"}, "abe").items():
        said = kept.get(f"{name}.lora_E", [True] * over)
        if not isinstance(said, list) or any(type(x) is not bool for x in said) or sum(said) != len(held["a"]):
            raise FormatError(f"{where}: {name} has a factor of {list(held['a'].shape)}, which is not the rank that is said")
        made = {"alpha": alpha or over, "root": False, "dropout": float(dropout), "over": over}
        for site, rows in _sites(where, name, model):
            own = {"a": held["a"], "b": held["b"][rows], "values": held["e"].flatten()}
            parts[site] = _rebuilt(where, name, Singular, made, own)
    return parts


def _scale(where: Path, config: dict[str, Any], tensors: dict[str, Tensor], model: Decoder) -> Parts:
    parts: Parts = {}
    for name, held in _by_module(where, tensors, {"ia3_l": "l"}, "l").items():
        shape = held["l"].shape
        if len(shape) != 2 or min(shape) != 1:
            raise FormatError(f"{where}: {name} has a scale of {list(shape)}, which is neither a row nor a column")
        for site, rows in _sites(where, name, model):
            inner = shape[0] == 1
            vector = held["l"].flatten() if inner else held["l"].flatten()[rows]
            parts[site] = _rebuilt(where, name, Scale, {"where": "in" if inner else "out"}, {"vector": vector.clone()})
    return parts


def _rows(where: Path, config: dict[str, Any], tensors: dict[str, Tensor], model: Decoder) -> Parts:
    rows, P = _only(where, config, tensors)
    G, layers = (setting(config, key, "size", where=str(where)) for key in ("num_attention_heads", "num_layers"))
    if layers != model.config.layers:
        raise FormatError(f"{where} is for {layers} layers; this model has {model.config.layers}")
    if rows.shape[1] % (2 * layers * G) or not rows.shape[1]:
        raise FormatError(f"{where}: {ROWS} of {list(rows.shape)} do not hold keys and values of {G} heads in {layers} layers")
    sides = rows.view(P, 2 * layers, G, -1).permute(1, 2, 0, 3).contiguous()  # [2 layers, G, P, D]
    return {f"layers.{i}.self_attn": _rebuilt(where, ROWS, Prefix, {}, {"k": sides[2 * i], "v": sides[2 * i + 1]})
            for i in range(layers)}


def _embeds(where: Path, config: dict[str, Any], tensors: dict[str, Tensor], model: Decoder) -> Parts:
    rows, _ = _only(where, config, tensors)
    if model.config.embed_scale != 1.0:
        raise UnsupportedError(f"{where}: this model scales its embeddings, and what scale these were trained at is not said")
    return {"embed_tokens": _rebuilt(where, ROWS, Prompt, {}, {"embeds": rows})}


def _only(where: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Tensor, int]:
    P = setting(config, "num_virtual_tokens", "size", where=str(where))
    if config.get("num_transformer_submodules") not in (None, 1):
        raise UnsupportedError(f"{where} is for an encoder and a decoder; lithe's models are decoders alone")
    if list(tensors) != [ROWS] or tensors[ROWS].dim() != 2 or len(tensors[ROWS]) != P:
        raise FormatError(f"{where} says {P} rows; beside it must be {ROWS} with as many, not "
                          + some([f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()]))
    return tensors[ROWS], P


def _by_module(where: Path, tensors: dict[str, Tensor], tails: dict[str, str], wanted: str) -> dict[str, dict[str, Tensor]]:
    """Tensors by the checkpoint's name of their module and by role. Raises for any that has no role, and for gaps."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        tail = next((tail for tail in tails if key.startswith(ROOT) and key.endswith(f".{tail}")), None)
        if tail is None:
            raise UnsupportedError(f"{where}: beside it lies {key!r:.200}, which lithe has no part for")
        found.setdefault(key[len(ROOT) : -len(tail) - 1], {})[tails[tail]] = tensor
    if gaps := sorted(name for name, held in found.items() if set(held) != set(wanted)):
        raise FormatError(f"{where}: {some(gaps)} lacks some of its tensors")
    return found


def _sites(where: Path, name: str, model: Decoder) -> list[tuple[str, slice]]:
    """The sites that a module of a checkpoint stands for, each with its rows among the outputs."""
    known, layers = checkpoint_names(model), linears(model)
    if name not in known or "experts" in name:
        raise FormatError(f"{where}: there are weights for {name!r:.200}, which is no linear layer of this model's blocks")
    found, start = [], 0
    for site in known[name]:
        found.append((site, slice(start, start + layers[site].out_features) if len(known[name]) > 1 else slice(None)))
        start += layers[site].out_features
    return found


def _rebuilt(where: Path, name: str, kind: type[Part], settings: dict[str, Any], tensors: dict[str, Tensor]) -> Part:
    try:
        return kind.rebuild(settings, {key: tensor.clone() for key, tensor in tensors.items()})
    except FormatError as problem:
        raise FormatError(f"{where}: {name}: {problem}") from None


def _patterns(where: Path, config: dict[str, Any], key: str) -> dict[str, Any]:
    """Settings by regular expression. Those that could take long to match, as none that people write does, are refused."""
    held = config.get(key) or {}
    if not isinstance(held, dict) or len(held) > 10_000:
        raise FormatError(f"{where}: {key} must be an object of names and values")
    for pattern in held:
        slow = re.search(r"\)[*+?{]|\(\?", pattern) or len(re.findall(r"[*+?]", pattern)) > 4
        if not PATTERN.fullmatch(pattern) or slow:
            raise UnsupportedError(f"{where}: {key} has {pattern!r:.200}, a pattern that lithe does not run")
        try:
            re.compile(pattern)
        except re.error as problem:
            raise FormatError(f"{where}: {key} has {pattern!r:.200}, which is no pattern: {problem}") from None
    return held


def _match(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that a module's name, or the end of it from a dot on, matches; as PEFT does it."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), default)


def _as_targeted(where: Path, config: dict[str, Any], parts: Parts, model: Decoder) -> None:
    """Every module that a list of targets names has tensors."""
    targets = config.get("target_modules")
    if targets is None or isinstance(targets, str):
        return  # an expression, or nothing: the tensors say it
    if not isinstance(targets, list):
        raise FormatError(f"{where}: target_modules must be a list of names or an expression, not {targets!r:.80}")
    names = [name for name, sites in checkpoint_names(model).items() if parts.keys() & set(sites)]
    for target in targets:
        if not isinstance(target, str) or not any(name == target or name.endswith(f".{target}") for name in names):
            raise FormatError(f"{where}: target_modules has {target!r:.80}, but there are no tensors for it")


READERS: dict[str, Callable[..., Parts]] = {"LORA": _low_rank, "ADALORA": _singular, "IA3": _scale, "PREFIX_TUNING": _rows,
                                            "PROMPT_TUNING": _embeds}
