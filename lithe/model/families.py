"""config.json of each architecture to a Config and back. Keys are an allow-list: one that could matter is never skipped."""

from __future__ import annotations

from dataclasses import dataclass, field

from lithe.errors import FormatError
from lithe.model import rope_keys
from lithe.model.config import Config
from lithe.model.header import NEEDED, setting
from lithe.model.rope_keys import GLOBAL, SLIDING

Key = tuple[str, str, object]  # the Config fields it sets, its kind, its default
Table = dict[str, Key | None]

SIZES: Table = {
    "vocab_size": ("vocab", "size", NEEDED), "hidden_size": ("width", "size", NEEDED),
    "intermediate_size": ("ffn", "size", NEEDED), "num_hidden_layers": ("layers", "layers", NEEDED),
    "num_attention_heads": ("heads", "size", NEEDED), "num_key_value_heads": ("kv_heads", "size", None),
    "head_dim": ("head_dim", "size", None), "max_position_embeddings": ("context", "size", 2048),
    "rms_norm_eps": ("norm_eps", "number", 1e-6), "tie_word_embeddings": ("tied", "flag", False),
    "hidden_act": ("activation", "word", "silu"),
}
BIAS: Table = {"attention_bias": ("qkv_bias out_bias", "flag", False)}
LONG: Table = {"max_position_embeddings": ("context", "size", 32768)}
EPS: Table = {"rms_norm_eps": ("norm_eps", "number", 1e-5)}
GEMMA: Table = {
    **BIAS, "tie_word_embeddings": ("tied", "flag", True), "head_dim": ("head_dim", "size", 256),
    "hidden_act": ("activation", "word", "gelu_pytorch_tanh"), "max_position_embeddings": ("context", "size", 8192)}
GEMMA_2: Table = {
    **GEMMA, "hidden_act": None, "hidden_activation": ("activation", "word", "gelu_pytorch_tanh"),
    "query_pre_attn_scalar": ("attn_scale", "number", 256), "final_logit_softcapping": ("logit_cap", "cap", 30.0)}
MASKED: Table = {"mask_token_id": ("mask_token", "size", NEEDED)}
LLADA: Table = {**dict.fromkeys(SIZES), **MASKED, "embedding_size": ("vocab", "size", NEEDED),
                "d_model": ("width", "size", NEEDED),
                "mlp_hidden_size": ("ffn", "size", NEEDED), "n_layers": ("layers", "layers", NEEDED),
                "n_heads": ("heads", "size", NEEDED), "n_kv_heads": ("kv_heads", "size", None), "vocab_size": None,
                "max_sequence_length": ("context", "size", 4096), "rms_norm_eps": ("norm_eps", "number", 1e-5),
                "weight_tying": ("tied", "flag", False), "activation_type": ("activation", "word", "silu"),
                "include_qkv_bias": ("qkv_bias", "flag", False)}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular to one architecture."""

    architecture: str
    keys: Table = field(default_factory=dict)  # beyond SIZES, or instead of them
    traits: dict[str, object] = field(default_factory=dict)  # Config fields that every such model has
    windows: str = ""  # which layers use the window: all, or by layer_types, which default to late or periodic ones
    window: int | None = None  # where config.json does not say
    switch: bool = False  # use_sliding_window turns it on
    period: int = 0  # every so many layers one is global
    theta: float = 10000.0
    local_theta: float = 0.0  # of windowed layers, where they differ
    ropes: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    partial: bool = False  # partial_rotary_factor is honoured
    further: tuple[str, ...] = ()  # keys read by name below
    inert: frozenset[str] = frozenset()  # keys of its own that change nothing lithe does
    coded: bool = False  # every checkpoint names code of its own, in the place of which lithe's runs


FAMILIES = {
    "llama": Family(architecture="LlamaForCausalLM", keys={**BIAS, "mlp_bias": ("mlp_bias", "flag", False)}),
    "mistral": Family(architecture="MistralForCausalLM", keys={"max_position_embeddings": ("context", "size", 131072)},
                      windows="all", window=4096),
    "mixtral": Family(
        architecture="MixtralForCausalLM", windows="all", theta=1e6,
        keys={**EPS, "max_position_embeddings": ("context", "size", 131072), "num_local_experts": ("experts", "size", 8),
              "num_experts_per_tok": ("experts_per_token", "size", 2),
              "intermediate_size": ("ffn expert_ffn", "size", NEEDED)}),
    "qwen2": Family(architecture="Qwen2ForCausalLM", keys=LONG, traits={"qkv_bias": True}, windows="late", window=4096,
                    switch=True, further=("max_window_layers",)),
    "qwen3": Family(architecture="Qwen3ForCausalLM", keys={**LONG, **BIAS, "head_dim": ("head_dim", "size", 128)},
                    traits={"qk_norm": "head"}, windows="late", window=4096, switch=True, further=("max_window_layers",)),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM", traits={"qk_norm": "head"}, windows="all", window=4096, switch=True,
        keys={**LONG, **BIAS, "num_experts": ("experts", "size", 128), "num_experts_per_tok": ("experts_per_token", "size", 8),
              "moe_intermediate_size": ("expert_ffn", "size", 768), "norm_topk_prob": ("norm_topk", "flag", False)},
        further=("max_window_layers", "decoder_sparse_step", "mlp_only_layers", "num_local_experts")),
    "gemma": Family(architecture="GemmaForCausalLM", keys=GEMMA, traits={"norm_offset": 1.0}),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM", keys={**GEMMA_2, "attn_logit_softcapping": ("attn_cap", "cap", 50.0)},
        traits={"norm_offset": 1.0, "norm_out": True}, windows="periodic", window=4096, period=2),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM", theta=1e6, local_theta=10000.0, windows="periodic", window=4096, period=6,
        keys={**GEMMA_2, "final_logit_softcapping": ("logit_cap", "cap", None),
              "max_position_embeddings": ("context", "size", 131072)},
        traits={"norm_offset": 1.0, "norm_out": True, "qk_norm": "head"},
        further=("sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq")),
    "phi3": Family(architecture="Phi3ForCausalLM", windows="all", partial=True, ropes=("default",),
                   keys={**EPS, "max_position_embeddings": ("context", "size", 4096)}),
    "olmo2": Family(architecture="Olmo2ForCausalLM", keys={**BIAS, **EPS},
                    traits={"norm_in": False, "norm_out": True, "qk_norm": "all"}),
    "llada": Family(
        architecture="LLaDAModelLM", keys=LLADA, traits={"attends": "full"}, ropes=("default",), theta=500000.0, coded=True,
        inert=frozenset({"vocab_size", "alibi_bias_max", "block_group_size", "init_cutoff_factor", "init_device", "init_fn",
                         "init_std", "mlp_ratio", "precision", "flash_attention", "rope_full_precision",
                         "attention_layer_norm_with_affine", "max_sequence_length"})),
    "Dream": Family(architecture="DreamModel", keys={**LONG, **MASKED}, coded=True, windows="late", window=4096, switch=True,
                    traits={"qkv_bias": True, "attends": "full", "shifted": True}, further=("max_window_layers",)),
    "bitnet": Family(architecture="BitNetForCausalLM", theta=500000.0, traits={"sub_norm": True},
                     keys={**BIAS, **EPS, "hidden_act": ("activation", "word", "relu2")}),
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
               "relu": "relu", "relu2": "relu2"}
HARMLESS = {  # keys that change nothing lithe does
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range",
    "_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "tokenizer_class",
    "return_dict", "output_attentions", "output_hidden_states", "output_router_logits", "router_aux_loss_coef",
    "router_jitter_noise", "id2label", "label2id", "problem_type", "task_specific_params", "finetuning_task", "max_length",
    "max_sequence_length", "original_max_position_embeddings", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "cache_implementation", "unsloth_version", "unsloth_fixed", "transformers.js_config",
}
NEUTRAL: dict[str, tuple] = {  # keys of other architectures and tasks, with the values that change nothing
    "pretraining_tp": (1, None), "is_encoder_decoder": (False,), "is_decoder": (False, True), "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,), "cross_attention_hidden_size": (None,), "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None), "torchscript": (False,), "use_bfloat16": (False, True), "quantization_config": (None,),
    "use_bidirectional_attention": (None, False), "attention_bias": (False, None), "mlp_bias": (False, None),
    "sliding_window": (None,), "use_sliding_window": (False, None), "use_mrope": (False, None), "clip_qkv": (None,),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,), "hidden_activation": (None, "gelu_pytorch_tanh"),
    "hidden_act": (None, "gelu_pytorch_tanh", "gelu"), "rope_interleaved": (False,), "is_llama_config": (True,),
    # LLaDA's
    "alibi": (False,), "attention_layer_norm": (False,), "bias_for_layer_norm": (False, None), "block_type": ("llama",),
    "include_bias": (False,), "input_emb_norm": (False,), "layer_norm_type": ("rms",), "layer_norm_with_affine": (True,),
    "multi_query_attention": (None, False), "rope": (True,), "scale_logits": (False,),
}


def parse(raw: dict) -> Config:
    """The Config that a config.json describes. Raises FormatError naming architecture and trait for what lithe has not."""
    name = raw.get("model_type")
    coded = isinstance(name, str) and name in FAMILIES and FAMILIES[name].coded
    if "auto_map" in raw and not coded:
        raise FormatError("config.json names Python code to run (auto_map); lithe runs no code from a checkpoint. "
                          "If the architecture itself is a known one, remove the auto_map entry")
    if not isinstance(name, str) or name not in FAMILIES:
        raise FormatError(f"config.json: model_type {name!r:.80} is not supported; lithe knows {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    if name == "qwen3_moe" and "num_local_experts" in raw:  # transformers 5 writes this name
        raw = {"num_experts": raw["num_local_experts"], **raw}
    table = _table(family)
    _refuse_unknown(raw, name, family, table)
    traits: dict = {"family": name, **family.traits}
    for key, (fields, kind, default) in table.items():
        traits.update(dict.fromkeys(fields.split(), setting(raw, key, kind, default)))
    traits["kv_heads"] = traits["kv_heads"] or traits["heads"]
    traits["head_dim"] = traits.get("head_dim") or 0
    traits["activation"] = _activation(name, traits["activation"])
    if "attn_scale" in traits:
        traits["attn_scale"] **= -0.5
    if name.startswith("gemma"):
        traits["embed_scale"] = traits["width"] ** 0.5
    if name == "qwen3_moe":
        traits["expert_layers"] = _expert_layers(raw, traits["layers"])
    traits["window"], traits["windowed"] = _windows(raw, name, family, traits["layers"])
    traits["rope"], local = rope_keys.read(raw, name, family, traits["context"])
    traits["rope_local"] = local if traits["window"] else None
    return Config(**traits)


def express(config: Config) -> dict | None:
    """The config.json that transformers reads as this model; None where none can say it, as for a pruned model."""
    family = FAMILIES.get(config.family)
    if family is None:
        return None
    raw: dict = {"model_type": config.family, "architectures": [family.architecture]}
    raw |= {key: getattr(config, fields.split()[0]) for key, (fields, _, _) in _table(family).items()}
    for key in raw.keys() & {"hidden_act", "hidden_activation"}:
        raw[key] = {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation)
    if "query_pre_attn_scalar" in raw:
        raw["query_pre_attn_scalar"] = round(raw["query_pre_attn_scalar"] ** -2) if config.attn_scale else None
    if family.windows:
        raw["sliding_window"] = config.window or (family.window if family.windows == "periodic" else None)
    if family.windows in ("late", "periodic"):
        raw["layer_types"] = [SLIDING if config.layer(i).window else GLOBAL for i in range(config.layers)]
    if family.switch:
        raw["use_sliding_window"] = config.window is not None
    if config.family == "qwen3_moe":
        raw["decoder_sparse_step"] = 1
        raw["mlp_only_layers"] = [i for i in range(config.layers) if not config.layer(i).experts]
    raw |= rope_keys.write(config.rope, config.rope_local, family)
    try:
        return raw if parse(raw) == config else None
    except FormatError:
        return None


def _table(family: Family) -> dict[str, Key]:
    return {key: entry for key, entry in (SIZES | family.keys).items() if entry}


def _refuse_unknown(raw: dict, name: str, family: Family, table: dict[str, Key]) -> None:
    known = {*table, *HARMLESS, *rope_keys.KEYS, *family.further, *family.inert} | ({"auto_map"} if family.coded else set())
    known |= {"sliding_window", "layer_types"} if family.windows else set()
    known |= {"use_sliding_window"} if family.switch else set()
    for key in sorted(raw.keys() - known):
        value = raw[key]
        neutral = value in NEUTRAL.get(key, ())
        if key.endswith(("dropout", "_pdrop")):
            neutral = value in (0, None)
        elif key == "sliding_window_size":  # a second name in some Gemma 2 files
            neutral = value == raw.get("sliding_window")
        elif key == "layer_types":
            neutral = value is None or (isinstance(value, list) and all(kind == GLOBAL for kind in value))
        if not neutral:
            raise FormatError(f"config.json: the {name} architecture with {key} = {value!r:.80} is not supported; "
                              f"lithe cannot tell what it would change. If it changes nothing, remove the key")


def _activation(name: str, word: str) -> str:
    if word not in ACTIVATIONS:
        raise FormatError(f"config.json: the {name} architecture with activation {word!r:.80} is not supported; "
                          f"lithe knows {', '.join(ACTIVATIONS)}")
    return "gelu_tanh" if (name, word) == ("gemma", "gelu") else ACTIVATIONS[word]  # the first Gemma files said gelu for it


def _windows(raw: dict, name: str, family: Family, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    """The window, and which layers use it where not all do."""
    size = setting(raw, "sliding_window", "size", None) if "sliding_window" in raw else family.window
    if not family.windows or (family.switch and not setting(raw, "use_sliding_window", "flag", False)):
        size = None
    types = raw.get("layer_types") if family.windows else None
    if types is not None:
        if not isinstance(types, list) or len(types) != layers or any(kind not in (SLIDING, GLOBAL) for kind in types):
            raise FormatError(f"config.json: layer_types must say {SLIDING} or {GLOBAL} for each of {layers} layers")
        sliding = [kind == SLIDING for kind in types]
        if (any(sliding) and not size) or (family.windows == "all" and set(sliding) != {bool(size)}):
            raise FormatError(f"config.json: the {name} architecture with sliding_window {size} contradicts its layer_types")
    elif family.windows == "late":
        first = setting(raw, "max_window_layers", "count", 28)
        sliding = [i >= first for i in range(layers)]
    elif family.windows == "periodic":
        key = next((key for key in family.further if key.endswith("_pattern") and key in raw), "")
        period = setting(raw, key, "size", family.period)
        sliding = [(i + 1) % period != 0 for i in range(layers)]
    else:
        sliding = [True] * layers
    if size is None or not any(sliding):
        return None, None
    return size, None if all(sliding) else tuple(sliding)


def _expert_layers(raw: dict, layers: int) -> tuple[bool, ...] | None:
    step, dense = setting(raw, "decoder_sparse_step", "size", 1), raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int for i in dense):
        raise FormatError(f"config.json: mlp_only_layers must be a list of layer numbers, not {dense!r:.80}")
    sparse = tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))
    return None if all(sparse) else sparse
