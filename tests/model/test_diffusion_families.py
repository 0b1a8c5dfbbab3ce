"""LLaDA and Dream folders load; logits equal those of a short reference written from the papers."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lithe.errors import FormatError
from lithe.model.checkpoint import load, save
from lithe.model.mask import FULL

C, H, G, N, V, L = 32, 4, 2, 48, 64, 2
LLADA = {"model_type": "llada", "architectures": ["LLaDAModelLM"], "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
         "d_model": C, "n_layers": L, "n_heads": H, "n_kv_heads": G, "mlp_hidden_size": N, "mlp_ratio": 4, "vocab_size": V,
         "embedding_size": V, "max_sequence_length": 128, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "weight_tying": False,
         "mask_token_id": 60, "include_bias": False, "include_qkv_bias": False, "layer_norm_type": "rms", "alibi": False,
         "block_type": "llama", "rope": True, "activation_type": "silu", "init_fn": "mitchell", "scale_logits": False}
DREAM = {"model_type": "Dream", "architectures": ["DreamModel"], "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
         "hidden_size": C, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": G, "intermediate_size": N,
         "vocab_size": V, "max_position_embeddings": 128, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
         "tie_word_embeddings": False, "mask_token_id": 60, "sliding_window": None, "use_sliding_window": False,
         "max_window_layers": 28, "hidden_act": "silu"}
NAMES = {"llada": ("model.transformer.wte", "model.transformer.blocks.{}.", "attn_norm", "ff_norm", "", "attn_out", "ff_proj",
                   "up_proj", "ff_out", "model.transformer.ln_f", "model.transformer.ff_out"),
         "Dream": ("model.embed_tokens", "model.layers.{}.", "input_layernorm", "post_attention_layernorm", "self_attn.",
                   "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "model.norm", "lm_head")}


def folder(tmp_path, config):
    """A random checkpoint in the family's own names."""
    kind, dice, tensors = config["model_type"], torch.Generator().manual_seed(0), {}
    embed, block, norm1, norm2, attn, out, gate, up, down, last, head = NAMES[kind]
    new = lambda *shape: torch.randn(shape, generator=dice) * 0.3
    tensors |= {f"{embed}.weight": new(V, C), f"{last}.weight": 1 + new(C), f"{head}.weight": new(V, C)}
    for i in range(L):
        at = block.format(i)
        for name, width in (("q_proj", C), ("k_proj", C * G // H), ("v_proj", C * G // H)):
            tensors[f"{at}{attn}{name}.weight"] = new(width, C)
            if kind == "Dream":
                tensors[f"{at}{attn}{name}.bias"] = new(width)
        tensors |= {f"{at}{out}.weight": new(C, C), f"{at}{gate}.weight": new(N, C), f"{at}{up}.weight": new(N, C),
                    f"{at}{down}.weight": new(C, N), f"{at}{norm1}.weight": 1 + new(C), f"{at}{norm2}.weight": 1 + new(C)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path, tensors


def reference(tensors, config, ids):
    """Logits [T, V] by the papers: a Llama block whose every place sees every other."""
    kind = config["model_type"]
    embed, block, norm1, norm2, attn, out, gate, up, down, last, head = NAMES[kind]
    eps, theta, D, T = config["rms_norm_eps"], config["rope_theta"], C // H, len(ids)
    normed = lambda x, name: x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * tensors[f"{name}.weight"]
    angle = torch.outer(torch.arange(T), theta ** (-torch.arange(0, D, 2) / D)).repeat(1, 2)

    def turned(x):
        half = torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1)
        return x * angle.cos() + half * angle.sin()

    x = tensors[f"{embed}.weight"][ids]
    for i in range(L):
        at = block.format(i)
        linear = lambda y, name, at=at: F.linear(y, tensors[f"{at}{name}.weight"], tensors.get(f"{at}{name}.bias"))
        y = normed(x, at + norm1)
        heads = lambda z: z.view(T, -1, D).transpose(0, 1)
        q, k = turned(heads(linear(y, attn + "q_proj"))), turned(heads(linear(y, attn + "k_proj")))
        v = heads(linear(y, attn + "v_proj"))
        k, v = k.repeat_interleave(H // G, 0), v.repeat_interleave(H // G, 0)
        seen = (q @ k.transpose(1, 2) / D**0.5).softmax(-1) @ v
        x = x + linear(seen.transpose(0, 1).reshape(T, C), out)
        y = normed(x, at + norm2)
        x = x + linear(F.silu(linear(y, gate)) * linear(y, up), down)
    logits = normed(x, last) @ tensors[f"{head}.weight"].T
    return torch.cat((logits[:1], logits[:-1])) if kind == "Dream" else logits


@pytest.mark.parametrize("config", [LLADA, DREAM], ids=lambda config: config["model_type"])
def test_logits_are_the_reference_s(tmp_path, config):
    place, tensors = folder(tmp_path, config)
    model = load(place, dtype=torch.float32)
    assert model.config.attends == "full" and model.config.mask_token == 60
    ids = torch.randint(0, V, (17,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(ids[None], mask=FULL, logits="all").scores[0]
    ours = torch.cat((ours[:1], ours[:-1])) if model.config.shifted else ours
    torch.testing.assert_close(ours, reference(tensors, config, ids), atol=1e-4, rtol=1e-4)
    again = load(save(model, tmp_path / "again", dtype=torch.float32), dtype=torch.float32)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(("config", "key", "value"), [(LLADA, "alibi", True), (LLADA, "block_type", "sequential"),
                                                      (LLADA, "layer_norm_type", "default"), (DREAM, "mask_token_id", None),
                                                      (LLADA, "include_bias", True), (DREAM, "mask_token_id", 64)])
def test_what_would_change_the_model_is_refused(tmp_path, config, key, value):
    place, _ = folder(tmp_path, config | {key: value})
    with pytest.raises(FormatError, match="mask_token" if key == "mask_token_id" else key):
        load(place)
