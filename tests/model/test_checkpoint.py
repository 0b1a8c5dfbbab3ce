"""Saving and loading: precision, shards, heads, stacked experts, receipts, what Hugging Face cannot say, and atomicity."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lithe.errors import FormatError, TooLargeError, UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.checkpoint import fingerprint, load, read_config, save
from lithe.model.config import Config, Rope
from lithe.model.decoder import ALL, Decoder
from lithe.model.load import resolve
from tests.model import families_zoo as zoo

torch.set_num_threads(1)
IDS = torch.randint(0, 96, (1, 24), generator=torch.Generator().manual_seed(1))
SMALL = Config(vocab=96, width=16, layers=2, heads=4, kv_heads=2, ffn=24, context=64)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, logits=ALL).logits


@pytest.fixture
def folder(tmp_path):
    zoo.make("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(folder, tmp_path, dtype):
    model = load(folder)
    assert model.dtype == torch.float32 and load(folder, dtype=dtype).dtype == dtype
    save(model, tmp_path / "half", dtype=dtype)
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == str(dtype)[6:]
    assert all(t.dtype == dtype for t in load_file(tmp_path / "half/model.safetensors").values())
    assert load(tmp_path / "half").dtype == torch.float32
    torch.testing.assert_close(logits(load(tmp_path / "half")), logits(model), atol=0.2, rtol=0.1)


@pytest.mark.parametrize("case", ["llama", "phi3", "mixtral", "gemma2"])
def test_shards(case, tmp_path):
    zoo.make(case).save_pretrained(tmp_path / "one")
    whole = load(tmp_path / "one")
    save(whole, tmp_path / "many", shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(tmp_path / "many")), logits(whole))
    assert torch.equal(zoo.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many",
                                                                             dtype=torch.float32)(IDS).logits,
                       zoo.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.float32)(IDS).logits)
    assert fingerprint(tmp_path / "one") == fingerprint(save(whole, tmp_path / "again")) == fingerprint(tmp_path / "many")


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_stacked_experts(case, tmp_path):
    theirs = zoo.make(case)
    theirs.save_pretrained(tmp_path / "one")
    expected = logits(load(tmp_path / "one"))
    state = {name: tensor.contiguous().clone() for name, tensor in theirs.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    save_file(state, tmp_path / "one/model.safetensors")
    assert torch.equal(logits(load(tmp_path / "one")), expected)


def test_tied_head_in_the_file(tmp_path):
    theirs = zoo.make("llama-mha")
    theirs.save_pretrained(tmp_path / "m")
    state = load_file(tmp_path / "m/model.safetensors")
    assert "lm_head.weight" not in state
    expected = logits(load(tmp_path / "m"))
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, tmp_path / "m/model.safetensors")
    assert torch.equal(logits(load(tmp_path / "m")), expected)
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].half()}, tmp_path / "m/model.safetensors")
    with pytest.raises(FormatError, match="tie_word_embeddings"):
        load(tmp_path / "m")
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"] + 1}, tmp_path / "m/model.safetensors")
    with pytest.raises(FormatError, match="tie_word_embeddings"):
        load(tmp_path / "m")


def test_rotary_buffers_are_harmless(folder):
    state = load_file(folder / "model.safetensors")
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    load(folder)


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight, which no file holds"),
    (lambda s: s.update({"model.layers.9.extra": torch.ones(1)}), "model.layers.9.extra, for which"),
    (lambda s: s.update({"model.norm.weight": torch.ones(3)}),
     r"model.norm.weight has shape \[3\], config.json asks for \[32\]"),
    (lambda s: s.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "model.norm.weight is I8"),
    (lambda s: s.update({"model.norm.weight": torch.ones(2, 16)}), "model.norm.weight has shape")])
def test_wrong_tensors_are_named(folder, change, message):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(FormatError, match=message):
        load(folder)


def test_memory_is_estimated_before(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "available_memory", lambda device: 50_000)
    with pytest.raises(TooLargeError, match=r"0\.00 GB are available"):
        load(folder)
    monkeypatch.setattr(checkpoint, "available_memory", lambda device: None)
    load(folder)


ODD = {
    "per-layer": SMALL.replace(heads=(4, 2), kv_heads=(2, 1), ffn=(24, 8), head_dim=4),
    "removed": SMALL.replace(heads=(0, 4), kv_heads=(0, 2), ffn=(24, 0), head_dim=4),
    "parallel": SMALL.replace(parallel=True, gated=False, activation="relu"),
    "mixture": SMALL.replace(experts=3, experts_per_token=2, expert_ffn=8, expert_layers=(False, True)),
    "norms": SMALL.replace(norm_out=True, qk_norm="all", sub_norm=True, out_bias=True, logit_cap=2.0),
    "rope": SMALL.replace(rope=Rope(part=0.5), rope_local=Rope(theta=50.0, kind="linear", factor=2.0), window=5,
                          windowed=(True, False)),
    "phi3": SMALL.replace(family="phi3", heads=(4, 2), kv_heads=(2, 2), head_dim=4),
}


@pytest.mark.parametrize("config", ODD.values(), ids=ODD.keys())
def test_what_hugging_face_cannot_say(config, tmp_path):
    model = Decoder(config).init(0)
    save(model, tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["model_type"] == "lithe"
    back = load(tmp_path / "m")
    assert back.config == config
    assert torch.equal(logits(back), logits(model))


def test_receipts_and_token_ids_travel(folder, tmp_path):
    model = load(folder)
    assert model.receipts == []
    model.receipts.append({"method": "prune", "knobs": {"share": 0.5}, "seed": 1, "parent": fingerprint(folder)})
    save(model, tmp_path / "next")
    assert load(tmp_path / "next").receipts == model.receipts
    assert json.loads((tmp_path / "next/config.json").read_text())["eos_token_id"] == 2
    assert json.loads((tmp_path / "next/lithe.json").read_text())["version"] == 1
    (tmp_path / "next/lithe.json").write_text(json.dumps({"version": 2, "receipts": []}))
    with pytest.raises(FormatError, match="version 2"):
        load(tmp_path / "next")


def test_fingerprint_sees_weights_and_settings(folder):
    first = fingerprint(folder)
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "other"}))
    assert fingerprint(folder) == first
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    assert fingerprint(folder) != first
    (folder / "config.json").write_text(json.dumps(config))
    state["model.norm.weight"][0] += 1
    save_file(state, folder / "model.safetensors")
    assert fingerprint(folder) != first


def test_nothing_is_overwritten_by_accident(tmp_path):
    model, target = Decoder(SMALL).init(0), tmp_path / "m"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not empty"):
            save(model, target, overwrite=overwrite)
    save(model, tmp_path / "n")
    with pytest.raises(UsageError, match="not empty"):
        save(model, tmp_path / "n")
    (tmp_path / "n/notes.txt").write_text("mine")
    save(Decoder(SMALL).init(1), tmp_path / "n", overwrite=True)
    assert (tmp_path / "n/notes.txt").read_text() == "mine"
    assert torch.equal(logits(load(tmp_path / "n")), logits(Decoder(SMALL).init(1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    save(Decoder(SMALL).init(0), tmp_path / "m")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(UsageError, match="No space left"):
        save(Decoder(SMALL).init(1), tmp_path / "m", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert torch.equal(logits(load(tmp_path / "m")), logits(Decoder(SMALL).init(0)))


def test_no_write_access(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UsageError):
            save(Decoder(SMALL), target)
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(UsageError, match="cannot write"):
            save(Decoder(SMALL), tmp_path / "locked/m")


def test_swapped_modules_are_not_dropped(tmp_path):
    model = Decoder(SMALL)
    model.sites("layers.0.mlp.up_proj")[0].swap(torch.nn.Sequential(torch.nn.Linear(16, 2), torch.nn.Linear(2, 24)))
    with pytest.raises(UnsupportedError, match=r"layers.0.mlp.up_proj.0.weight"):
        save(model, tmp_path / "m")
    model = Decoder(SMALL)
    model.sites("layers.0.mlp.up_proj")[0].swap(torch.nn.Linear(16, 8, bias=False))
    with pytest.raises(UnsupportedError, match=r"layers.0.mlp.up_proj.weight"):
        save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_loaded_weights_are_the_models_own(folder):
    model = load(folder)
    before = logits(model)
    shutil.rmtree(folder)
    assert torch.equal(logits(model), before)
    assert all(weight.requires_grad and weight.is_contiguous() for weight in model.parameters())


def test_companions_come_along(folder, tmp_path):
    (folder / "tokenizer_config.json").write_text("{}")
    save(load(folder), tmp_path / "m", tokenizer_from=folder)
    assert (tmp_path / "m/tokenizer_config.json").exists() and (tmp_path / "m/generation_config.json").exists()
    assert read_config(tmp_path / "m") == read_config(folder)


@pytest.mark.parametrize("heads, model", [("medusa", "zoo:tiny"), ("ppd-draft", "zoo:tiny-draft")])
def test_a_model_keeps_its_name(heads, model):
    """What was fitted to a model names it by its hash: a setting that came since (Config's LATER) must not rename it."""
    fitted = json.loads((resolve("zoo:tiny").parent / "heads" / heads / "fitted.json").read_text())
    assert fingerprint(resolve(model)) == fitted["target"]
