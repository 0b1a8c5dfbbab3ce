"""Files that are broken, hostile or of another kind: each a LitheError that says what to do, never another exception."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lithe.errors import FormatError
from lithe.model import families
from lithe.model.checkpoint import load, read_config, tensors
from lithe.model.header import read_json
from tests.model import families_zoo as zoo

GOOD = {"model_type": "llama", **zoo.BASE}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    zoo.make("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(folder, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load(folder)


def write(path, header, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(start: int, stop: int, **changes) -> dict:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop], **changes}


def test_no_folder(tmp_path):
    refused(tmp_path / "none", "does not exist")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is no model folder")
    refused(tmp_path, "config.json does not exist")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "model.gguf", "is GGUF; convert it")
    refused(tmp_path, "is GGUF; convert it")


@pytest.mark.parametrize("content, message", [
    (b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[1]", "must hold a JSON object"), (b'"x"', "JSON object"),
    (b"\xff\xfe{}", "not valid JSON"), (b'{"a": NaN}', "NaN"), (b'{"a": -Infinity}', "Infinity"),
    (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    (b"[" * 100_000, "not valid JSON"), (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"), (b"{}", "model_type None")])
def test_config_that_is_no_config(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(folder, message)


@pytest.mark.parametrize("change, message", [
    ({"auto_map": {"AutoModel": "code.Model"}}, "runs no code"), ({"model_type": "mamba"}, "'mamba' is not supported"),
    ({"model_type": ["llama"]}, "not supported"), ({"hidden_size": -1}, "hidden_size must be"),
    ({"hidden_size": "32"}, "hidden_size"),
    ({"hidden_size": 32.0}, "hidden_size"), ({"hidden_size": True}, "hidden_size"), ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": 2**40}, "hidden_size"), ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"num_hidden_layers": 9999}, "9999 layers, but there are only"), ({"num_key_value_heads": 3}, "4 heads for 3"),
    ({"num_attention_heads": 5}, "not divisible"), ({"head_dim": 7}, "no pairs"), ({"rms_norm_eps": "x"}, "rms_norm_eps"),
    ({"rms_norm_eps": -1}, "rms_norm_eps"), ({"rms_norm_eps": 1e999}, "Infinity|positive number"),
    ({"tie_word_embeddings": 1}, "tie_word"),
    ({"hidden_act": "snake"}, "llama architecture with activation 'snake'"), ({"hidden_act": 1}, "hidden_act"),
    ({"alibi": True}, "llama architecture with alibi = True"), ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"attention_dropout": 0.5}, "attention_dropout"), ({"pretraining_tp": 2}, "pretraining_tp"),
    ({"sliding_window": 7}, "sliding_window"),
    ({"layer_types": ["sliding_attention"] * 3}, "layer_types"), ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "llama architecture with rope type 'dynamic'"),
    ({"rope_scaling": {"type": "longrope"}}, "longrope"), ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "mrope"),
    ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
    ({"rope_scaling": {"type": "linear"}}, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"), ({"rope_scaling": [1]}, "rope settings"),
    ({"rope_scaling": {"type": ["linear"]}}, "rope type"), ({"rope_theta": "big"}, "rope_theta"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"), ({"hidden_size": 64}, "asks for"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention")])
def test_settings_that_are_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps({key: value for key, value in config.items() if key not in ("head_dim", "rope_parameters")} | change)
    (folder / "config.json").write_text(text.replace("Infinity", "1e999"))
    refused(folder, message)


@pytest.mark.parametrize("name, change, message", [
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
     "phi3 architecture with rope type 'longrope'"),
    ("gemma2", {"use_bidirectional_attention": True}, "gemma2"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "contradicts"),
    ("qwen2", {"layer_types": ["full_attention"]}, "each of 3 layers"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, "contradicts"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "rope"),
    ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "3 of 2 experts"),
    ("mixtral", {"num_local_experts": 10**6}, "experts"),
    ("qwen3_moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("qwen3_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size")])
def test_settings_of_other_families(name, change, message):
    with pytest.raises(FormatError, match=message):
        families.parse({**GOOD, "model_type": name, **change})


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
def test_sizes_are_never_guessed(name, key):
    raw = {k: v for k, v in {**GOOD, "model_type": name}.items() if k != key}
    own = {"vocab_size": "embedding_size", "hidden_size": "d_model", "num_hidden_layers": "n_layers",
           "num_attention_heads": "n_heads", "intermediate_size": "mlp_hidden_size"}
    if families.FAMILIES[name].keys is families.LLADA:  # its own names for the same
        raw = {own.get(k, k): v for k, v in raw.items() if k in own or k == "model_type"} | {"mask_token_id": 1}
        key = own[key]
    with pytest.raises(FormatError, match=key):
        families.parse(raw)


@pytest.mark.parametrize("more",
                         [{"rope_theta": 5.0}, {"rope_scaling": {"type": "linear", "factor": 2.0}},
                          {"partial_rotary_factor": 0.5}])
def test_settings_given_twice(more):
    with pytest.raises(FormatError, match=r"given twice|must be one object"):
        families.parse(GOOD | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0,
                                                   "partial_rotary_factor": 1.0}} | more)


def test_older_spellings_mean_the_same():
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert families.parse(GOOD | new) == families.parse(GOOD | old)
    gemma = {**GOOD, "model_type": "gemma3_text", "num_hidden_layers": 7}
    nested = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
              "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    flat = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert families.parse(gemma | {"rope_parameters": nested}) == families.parse(gemma | flat | {"sliding_window_pattern": 6})


@pytest.mark.parametrize("make, message", [
    (lambda p: p.write_bytes(b""), "truncated"), (lambda p: p.write_bytes(b"\0" * 7), "truncated"),
    (lambda p: p.write_bytes(p.read_bytes()[:-100]), "cut short"),
    (lambda p: p.write_bytes(p.read_bytes() + b"x"), "belong to none"),
    (lambda p: write(p, {}, length=2**63), "truncated or no safetensors"), (lambda p: write(p, {}, length=1000), "truncated"),
    (lambda p: write(p, b"\xff\xff"), "not valid JSON"), (lambda p: write(p, b"[]"), "JSON object"),
    (lambda p: write(p, b'{"a": {"dtype": "F32"}, "a": {}}'), "'a' occurs twice"),
    (lambda p: write(p, b"[" * 9999), "not valid JSON"),
    (lambda p: write(p, {"a": 3}), "exactly dtype"),
    (lambda p: write(p, {"a": {**tensor(0, 4), "x": 1}}, b"0000"), "exactly dtype"),
    (lambda p: write(p, {"a": tensor(0, 4, dtype="F99")}, b"0000"), "unknown dtype 'F99'"),
    (lambda p: write(p, {"a": tensor(0, 4, dtype=["F32"])}, b"0000"), "unknown dtype"),
    (lambda p: write(p, {"a": tensor(0, 4, shape=[2])}, b"0000"), "cannot fill"),
    (lambda p: write(p, {"a": tensor(0, 4, shape=[-1])}, b"0000"), "needs a shape"),
    (lambda p: write(p, {"a": tensor(0, 4, shape=[2**62, 2**62])}, b"0000"), "cannot fill"),
    (lambda p: write(p, {"a": tensor(0, 4, shape=[1] * 99)}, b"0000"), "needs a shape"),
    (lambda p: write(p, {"a": tensor(0, 4, shape=[1.0])}, b"0000"), "needs a shape"),
    (lambda p: write(p, {"a": tensor(0, 4, data_offsets=[4, 0])}, b"0000"), "lies at bytes"),
    (lambda p: write(p, {"a": tensor(0, 4, data_offsets=[0, 4, 8])}, b"0000"), "needs a shape"),
    (lambda p: write(p, {"a": tensor(0, 2**50)}, b"0000"), "cut short"),
    (lambda p: write(p, {"a": tensor(0, 8), "b": tensor(4, 12)}, b"0" * 12), "overlaps"),
    (lambda p: write(p, {"a": tensor(0, 4), "b": tensor(8, 12)}, b"0" * 12), "hole"), (lambda p: p.unlink(), "neither")])
def test_broken_safetensors(folder, make, message):
    make(folder / "model.safetensors")
    refused(folder, message)


@pytest.mark.parametrize("name, message", [
    ("pytorch_model.bin", "pickle.*convert it to safetensors"), ("consolidated.00.pth", "pickle.*convert"),
    ("model.pt", "pickle"),
    ("model-Q4.gguf", "GGUF.*convert")])
def test_other_kinds_of_weights(folder, name, message):
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, message)


def shard(folder, index) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "x\0y", 3, None])
def test_index_that_leads_outside(folder, file):
    shard(folder, {"weight_map": {"model.norm.weight": file}})
    refused(folder, "is not the name of a file|does not exist")


def test_links_that_lead_outside(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "w.safetensors"
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)
    refused(folder, "leads outside")
    (folder / "model.safetensors").unlink()
    (folder / "model-1.safetensors").symlink_to(elsewhere)
    names = dict.fromkeys(load_file(elsewhere), "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    refused(folder, "leads outside")


def test_the_hubs_download_cache_is_read(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    (root / "blobs").mkdir()
    (snapshot := root / "snapshots/abc").mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(root / f"blobs/{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    load(snapshot)


@pytest.mark.parametrize("index, message", [
    ({}, "weight_map"), ({"weight_map": []}, "weight_map"), ({"weight_map": {}}, "layers, but"),
    ({"weight_map": {"model.norm.weight": "model-2.safetensors"}}, "does not exist"),
    ({"weight_map": {"model.norm.weight": "model-1.safetensors"}}, "elsewhere or not at all")])
def test_broken_index(folder, index, message):
    shard(folder, index)
    refused(folder, message)


def test_index_naming_what_is_not_there(folder):
    names = [*load_file(folder / "model.safetensors"), "model.extra"]
    shard(folder, {"weight_map": dict.fromkeys(names, "model-1.safetensors")})
    refused(folder, "model.extra")


@pytest.mark.parametrize("own, message", [
    ({"version": 99}, "version 99"), ({"receipts": []}, "version None"), ({"version": 1, "receipts": {}}, "receipts"),
    ([], "JSON object")])
def test_broken_lithe_json(folder, own, message):
    (folder / "lithe.json").write_text(json.dumps(own))
    refused(folder, message)


def test_unreadable_file(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "config.json")


def test_json_too_long(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(10**9)
    with pytest.raises(FormatError, match="1000000000 bytes"):
        read_json(tmp_path, "config.json")


def test_zero_sized_tensors_are_legal(tmp_path):
    save_file({"a": torch.zeros(0, 4), "b": torch.ones(2)}, tmp_path / "model.safetensors")
    assert tensors(tmp_path)["a"].shape == (0, 4)


def test_read_config_alone(good):
    assert read_config(good).family == "llama"
