"""Small random models of every family, as transformers makes them: shared by the tests of this folder."""

from __future__ import annotations

import torch
import transformers

BASE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SLIDING, GLOBAL = "sliding_attention", "full_attention"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
MOE = {"num_experts": 5, "moe_intermediate_size": 16, "num_experts_per_tok": 2}

CASES = {  # name: (transformers class stem, what differs from BASE)
    "llama": ("Llama", {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-rope3": ("Llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "hidden_act": "gelu"}),
    "mistral": ("Mistral", {"sliding_window": 17}),
    "mistral-full": ("Mistral", {"sliding_window": None, "head_dim": 6, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen2-types": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "layer_types": [SLIDING, GLOBAL, SLIDING]}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-window": ("Qwen3", {"head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 5,
                               "max_window_layers": 0}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma-untied": ("Gemma", {"head_dim": 8, "tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu"}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 0.5,
                          "final_logit_softcapping": 0.2}),
    "gemma2-plain": ("Gemma2", {"head_dim": 8, "layer_types": [GLOBAL, GLOBAL, SLIDING], "sliding_window": 3,
                                "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 7, "num_hidden_layers": 7}),
    "gemma3-types": ("Gemma3Text", {"head_dim": 8, "sliding_window": 7, "layer_types": [GLOBAL, SLIDING, GLOBAL],
                                    "query_pre_attn_scalar": 10, "final_logit_softcapping": 0.3, "rope_parameters": {
                                        GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                        SLIDING: {"rope_type": "default", "rope_theta": 500.0}}}),
    "gemma3-local": ("Gemma3Text", {"head_dim": 8, "sliding_window": 7, "layer_types": [GLOBAL, SLIDING, GLOBAL],
                                    "rope_parameters": {GLOBAL: {"rope_type": "default", "rope_theta": 1e5},
                                                        SLIDING: {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e3}}}),
    "phi3": ("Phi3", {"sliding_window": 33}),
    "phi3-partial": ("Phi3", {"num_attention_heads": 2, "num_key_value_heads": 1, "partial_rotary_factor": 0.75}),
    "olmo2": ("Olmo2", {}),
    "olmo2-bias": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 11, "head_dim": 10}),
    "qwen3_moe": ("Qwen3Moe", {**MOE, "norm_topk_prob": True, "head_dim": 12}),
    "qwen3_moe-mixed": ("Qwen3Moe", {**MOE, "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3],
                                     "attention_bias": True, "use_sliding_window": True, "sliding_window": 6}),
    "bitnet": ("BitNet", {"hidden_act": "silu"}),
    "bitnet-relu2": ("BitNet", {"tie_word_embeddings": True}),
}


def make(case: str, seed: int = 0, **changes):
    """A transformers model in float32 whose weights are all random, norms and biases too."""
    stem, settings = CASES[case]
    config = getattr(transformers, f"{stem}Config")(**{**BASE, **settings, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{stem.removesuffix('Text')}ForCausalLM")(config).eval()
    for name, weight in model.named_parameters():
        spread = 0.3 if weight.dim() > 1 else 0.2
        centre = 0.0 if weight.dim() > 1 or name.endswith("bias") or stem.startswith("Gemma") else 1.0
        torch.nn.init.normal_(weight, centre, spread)
    return model
