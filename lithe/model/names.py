"""Tensor names: lithe's own, and those of each checkpoint layout. A layout is a table of rules from the first to the second.

Where rules give several tensors one name, the checkpoint holds their rows one after another; that is how fused
projections and stacked experts read, so every layout can be undone by splitting rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ROOT = [(r"^(embed_tokens|layers|norm)\.", r"model.\1.")]
SUB_NORMS = [("self_attn.sub_norm", "self_attn.attn_sub_norm"), ("mlp.sub_norm", "mlp.ffn_sub_norm")]
PLAIN = [*ROOT, *SUB_NORMS, ("attn_in_norm", "input_layernorm"), ("mlp_in_norm", "post_attention_layernorm"),
         (r"mlp\.router", "mlp.gate")]
SANDWICH = [*ROOT, ("attn_in_norm", "input_layernorm"), ("attn_out_norm", "post_attention_layernorm"),
            ("mlp_in_norm", "pre_feedforward_layernorm"), ("mlp_out_norm", "post_feedforward_layernorm")]
FUSED = [(r"self_attn\.[qkv]_proj", "self_attn.qkv_proj"), (r"mlp\.(gate|up)_proj", "mlp.gate_up_proj")]
MIXTRAL = [(r"mlp\.router", "block_sparse_moe.gate"), (r"mlp\.experts\.(\d+)\.gate_proj", r"block_sparse_moe.experts.\1.w1"),
           (r"mlp\.experts\.(\d+)\.down_proj", r"block_sparse_moe.experts.\1.w2"),
           (r"mlp\.experts\.(\d+)\.up_proj", r"block_sparse_moe.experts.\1.w3")]
STACKED = [(r"mlp\.experts\.\d+\.(gate|up)_proj\.weight", "mlp.experts.gate_up_proj"),
           (r"mlp\.experts\.\d+\.down_proj\.weight", "mlp.experts.down_proj")]
BLOCK = r"^layers\.(\d+)\."
LLADA = [(r"^embed_tokens", "model.transformer.wte"), (r"^norm", "model.transformer.ln_f"),
         (r"^lm_head", "model.transformer.ff_out"), (BLOCK + "attn_in_norm", r"model.transformer.blocks.\1.attn_norm"),
         (BLOCK + "mlp_in_norm", r"model.transformer.blocks.\1.ff_norm"),
         (BLOCK + r"self_attn\.o_proj", r"model.transformer.blocks.\1.attn_out"),
         (BLOCK + r"self_attn\.", r"model.transformer.blocks.\1."),
         (BLOCK + r"mlp\.gate_proj", r"model.transformer.blocks.\1.ff_proj"),
         (BLOCK + r"mlp\.up_proj", r"model.transformer.blocks.\1.up_proj"),
         (BLOCK + r"mlp\.down_proj", r"model.transformer.blocks.\1.ff_out")]
LAYOUTS = {"llada": LLADA, "gemma2": SANDWICH, "gemma3_text": SANDWICH, "olmo2": SANDWICH,
           "phi3": [*FUSED, *PLAIN], "mixtral": [*MIXTRAL, *PLAIN]}


def layout(names: Iterable[str], family: str, stacked: bool = False) -> dict[str, list[str]]:
    """For every tensor of the checkpoint the tensors of the decoder whose rows it holds, in order.

    `names` come in the decoder's own order. `stacked`: a layer's experts lie in one tensor [experts, rows, columns].
    """
    rules = [*STACKED, *PLAIN] if stacked else LAYOUTS.get(family, PLAIN)
    table: dict[str, list[str]] = {}
    for name in names:
        renamed = name
        for pattern, replacement in rules:
            renamed = re.sub(pattern, replacement, renamed)
        table.setdefault(renamed, []).append(name)
    return table


def is_stacked(found: Iterable[str]) -> bool:
    """Whether a checkpoint with these tensors stacks its experts."""
    return any(name.endswith(".mlp.experts.gate_up_proj") for name in found)


def shape_of(name: str, members: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a checkpoint tensor that holds members of these shapes."""
    rows = sum(shape[0] for shape in members)
    if is_stacked([name]) or name.endswith(".mlp.experts.down_proj"):
        experts = len(members) // 2 if is_stacked([name]) else len(members)
        return (experts, rows // experts, *members[0][1:])
    return (rows, *members[0][1:])
