"""A model as a GGUF file, for llama.cpp: the Llama architecture only, and no tokenizer where only token ids are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lithe.bench.engines import GGUF_TYPES
from lithe.errors import UnsupportedError
from lithe.model.config import Config, Rope
from lithe.model.decoder import Decoder

BLOCKS = {  # lithe's names of a block's weights, and GGUF's
    "attn_in_norm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp_in_norm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}
ENDS = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def write(model: Decoder, path: str | Path, precision: str, tokenizer: Path | None = None) -> None:
    """Write an unpacked model. Every matrix is of one type, a tied one is stored once, norms are float32.

    tokenizer: a tokenizer.json of byte-level BPE, whose words the file is to hold.

    Raises UnsupportedError for a model whose traits are not the plain Llama's.
    """
    import gguf
    from gguf import quants

    config = model.config
    check(config)
    kind = gguf.GGMLQuantizationType[GGUF_TYPES[precision]]
    writer: Any = gguf.GGUFWriter(path, "llama")
    for add, value in (*_traits(config, writer), *_words(tokenizer, writer)):
        add(value)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if precision == "fp32" else f"MOSTLY_{kind.name}"])
    for name, weight in model.state_dict().items():
        data = permuted(name, weight.float(), config).numpy()
        if data.ndim == 1 or precision == "fp32":
            writer.add_tensor(named(name), data)
        else:
            writer.add_tensor(named(name), quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(config: Config) -> None:
    """Raise UnsupportedError where a trait is not the plain Llama's, as nothing here would carry it over."""
    plain = Config(vocab=config.vocab, width=config.width, layers=config.layers, heads=config.heads, kv_heads=config.kv_heads,
                   ffn=config.ffn, context=config.context, head_dim=config.head_dim, family=config.family, tied=config.tied,
                   norm_eps=config.norm_eps, rope=Rope(theta=config.rope.theta))
    if config != plain or any(isinstance(count, tuple) for count in (config.heads, config.kv_heads, config.ffn)):
        raise UnsupportedError("only plain Llama models are converted for llama.cpp; this one has other traits")


def _traits(config: Config, writer: Any) -> list[tuple[Any, Any]]:
    return [
        (writer.add_vocab_size, config.vocab), (writer.add_context_length, config.context),
        (writer.add_embedding_length, config.width), (writer.add_block_count, config.layers),
        (writer.add_feed_forward_length, config.ffn), (writer.add_head_count, config.heads),
        (writer.add_head_count_kv, config.kv_heads), (writer.add_key_length, config.head_dim),
        (writer.add_value_length, config.head_dim), (writer.add_rope_dimension_count, config.head_dim),
        (writer.add_rope_freq_base, config.rope.theta), (writer.add_layer_norm_rms_eps, config.norm_eps)]


def _words(tokenizer: Path | None, writer: Any) -> list[tuple[Any, Any]]:
    """Its vocabulary. What comes of texts may differ in how words are split first; ids stand for the same words."""
    if tokenizer is None:
        return [(writer.add_tokenizer_model, "none")]
    import gguf

    told = json.loads(tokenizer.read_text(encoding="utf-8"))
    special = {each["content"] for each in told["added_tokens"] if each["special"]}
    words = sorted(told["model"]["vocab"], key=told["model"]["vocab"].get)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in told["model"]["merges"]]
    kinds = [gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words]
    return [(writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "smollm"), (writer.add_token_list, words),
            (writer.add_token_types, kinds), (writer.add_token_merges, merges), (writer.add_bos_token_id, 0),
            (writer.add_eos_token_id, 0), (writer.add_add_bos_token, False)]


def named(name: str) -> str:
    """GGUF's name of a tensor.

    >>> named("layers.3.mlp.up_proj.weight"), named("norm.weight")
    ('blk.3.ffn_up.weight', 'output_norm.weight')
    """
    stem, _, ending = name.rpartition(".")
    if not stem.startswith("layers."):
        return f"{ENDS[stem]}.{ending}"
    _, number, part = stem.split(".", 2)
    return f"blk.{number}.{BLOCKS[part]}.{ending}"


def permuted(name: str, weight: Tensor, config: Config) -> Tensor:
    """Rows of queries and keys as llama.cpp turns them: neighbours in pairs, where lithe pairs the halves of a head."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight.contiguous()
    heads = torch.unflatten(weight, 0, (-1, 2, config.head_dim // 2))
    return heads.transpose(1, 2).reshape(weight.shape).contiguous()
