"""Sparse layers in a model and in its folder: the bits of the dense ones, smaller files, any draft, adapters beside them."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lithe import registry
from lithe.compress import api
from lithe.compress.calibrate import of_ids
from lithe.contracts import draft
from lithe.contracts.small import small_model
from lithe.errors import FormatError, UnsupportedError
from lithe.kernels.pack import pack
from lithe.model import checkpoint
from lithe.model.adapted import remade
from lithe.model.config import Config
from lithe.model.decoder import ALL, Decoder
from lithe.model.linear import PackedLinear, SparseLinear
from lithe.model.load import load
from lithe.model.packing import layers, save_zeros
from lithe.tune.rack import Rack

IDS = torch.arange(48).remainder(31).view(2, 24)
CONFIG = Config(vocab=96, width=64, layers=2, heads=4, kv_heads=2, ffn=96, context=64, tied=True, qkv_bias=True)


def pruned(dtype=torch.float32, share=0.7, config=CONFIG):
    model = Decoder(config).init(0).to(dtype).eval()
    dice = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        weight.requires_grad_(False)
        if weight.dim() == 2 and name.startswith("layers."):
            weight.mul_(torch.rand(weight.shape, generator=dice) >= share)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS.remainder(model.config.vocab), logits=ALL).scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of bfloat16 weights, seven in ten of them zero."""
    model = pruned(torch.bfloat16)
    assert save_zeros(model, torch.bfloat16)
    return checkpoint.save(model, tmp_path_factory.mktemp("few") / "m")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_bit_for_bit_and_is_as_small_as_told(dtype, tmp_path):
    plain, model = pruned(dtype), pruned(dtype)
    few = save_zeros(model, dtype)
    assert len(few) == 14 and all(layer.kind == f"sparse_{'bf16' if dtype.itemsize == 2 else 'fp32'}" for layer in few.values())
    sizes = {}
    for name, one in (("plain", plain), ("few", model)):
        checkpoint.save(one, tmp_path / name)
        sizes[name] = (tmp_path / name / "model.safetensors").stat().st_size
    again = load(tmp_path / "few", fast=False)
    assert {name: layer.kind for name, layer in layers(again).items()} == {name: layer.kind for name, layer in few.items()}
    dense = load(tmp_path / "plain", fast=False)
    for name, layer in few.items():
        assert torch.equal(again.get_submodule(name).weight, dense.get_submodule(name).weight.to(dtype))
        assert torch.equal(again.get_submodule(name).stored.data, layer.stored.data)
    assert (logits(again) - logits(dense)).abs().max() < 1e-4
    assert torch.equal(logits(again), logits(load(tmp_path / "few", fast=False)))
    gained = sum(layer.in_features * layer.out_features * dtype.itemsize - len(layer.stored.data) for layer in few.values())
    assert abs(sizes["plain"] - sizes["few"] - gained) < 4096  # the header
    twin = copy.deepcopy(again).to(torch.bfloat16).float()
    assert all(torch.equal(twin.get_submodule(name).weight, again.get_submodule(name).weight) for name in few)
    assert twin.layers[0].mlp.up_proj.held.values is twin.layers[0].mlp.up_proj.values
    checkpoint.save(again, tmp_path / "more")  # and again, from what was loaded
    assert torch.equal(logits(load(tmp_path / "more", fast=False)), logits(again))


def test_a_layer_gives_the_bits_of_the_dense_kernel(folder):
    model, x = load(folder, fast=False), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    few = model.layers[0].mlp.up_proj
    assert torch.equal(few(x), PackedLinear(pack(few.weight.float(), "fp32"))(x))
    fused = load(folder)
    assert (logits(fused) - logits(model)).abs().max() < 1e-4
    assert "SparseLinear" in fused.fast.why[0]


def test_nothing_is_held_sparse_where_that_is_not_smaller():
    model = pruned(share=0.0)
    assert not save_zeros(model, torch.float32)
    assert not save_zeros(pruned(share=0.02), torch.float32) and save_zeros(pruned(share=0.2), torch.float32)
    assert not save_zeros(pruned(share=0.9), torch.float64)


@pytest.mark.parametrize("spoil", [{"count": 10}, {"count": "x"}, {"count": -1}, {"group": 32},
                                   {"kind": "sparse_int3", "count": 3}])
def test_a_folder_that_lies_is_refused(folder, tmp_path, spoil):
    shutil.copytree(folder, tmp_path / "m")
    own = json.loads((tmp_path / "m" / "lithe.json").read_text())
    entry = {"kind": "sparse_bf16"} | spoil
    own["packed"]["layers.0.mlp.up_proj"] = entry
    (tmp_path / "m" / "lithe.json").write_text(json.dumps(own))
    with pytest.raises(FormatError, match="up_proj"):
        load(tmp_path / "m")


def test_a_bitmap_that_tells_of_other_values_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    state = load_file(path)
    name = "layers.1.mlp.down_proj.data"
    at = int((state[name] != 255).nonzero()[0])
    state[name][at] = 255
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(FormatError, match="the bitmap tells of"):
        load(tmp_path / "m")


DRAFTS = registry.entries("decode", "draft")


@pytest.mark.parametrize("entry", [*DRAFTS[:5], *(pytest.param(entry, marks=pytest.mark.slow) for entry in DRAFTS[5:])],
                         ids=lambda entry: entry.name)
def test_every_draft_gives_the_tokens_of_plain_decoding(entry, monkeypatch):
    if "same_tokens" not in entry.card.promises:
        pytest.skip("it does not promise the same tokens")
    made = {}

    def small(**shape):
        key = tuple(sorted(shape.items()))
        if key not in made:
            model = copy.deepcopy(small_model(**shape)).float()
            for layer in model.layers:
                for module in layer.modules():
                    if hasattr(module, "in_features"):
                        module.weight.data[:, ::2] = 0
            assert save_zeros(model, torch.float32)
            made[key] = model
        return made[key]

    monkeypatch.setattr(draft, "small_model", small)
    draft.check_same_tokens(entry)


def test_lora_learns_beside_sparse_weights_and_is_not_merged_into_them(folder):
    model = load(folder, fast=False)
    before = logits(model)
    rack = Rack.of(model)
    rack.make("lora:rank=4", name="a", seed=0)
    rack.train("a")
    assert torch.equal(logits(model), before)
    best = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=1e-2)
    ids, losses = IDS, []
    for _ in range(8):
        scores = model(ids, logits=ALL).scores
        loss = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        best.zero_grad()
        loss.backward()
        best.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.01
    with pytest.raises(UnsupportedError, match="would fill their zeros"):
        rack.merge("a")
    few = next(layer for layer in model.modules() if isinstance(layer, SparseLinear))
    with pytest.raises(UnsupportedError, match="would fill their zeros"):
        remade(few, few.weight, None)


def test_what_compress_writes_is_sparse_where_it_pays_and_within_its_bytes(tmp_path):
    text = of_ids(torch.arange(512).remainder(31), length=32)
    model = checkpoint.save(pruned(share=0.0), tmp_path / "base")
    found = api.compress(model, "wanda:ratio=0.6", calibration=text, out=tmp_path / "few")
    assert found.report["sparse"]["layers"] == 14 and found.report["sparse"]["bytes"] < found.report["sparse"]["bytes_dense"]
    dense = api.compress(model, "wanda:ratio=0.6", calibration=text, out=tmp_path / "dense", dense_zeros=True)
    assert "sparse" not in dense.report and not layers(dense.model)
    assert (logits(found.model) - logits(dense.model)).abs().max() < 1e-4
    assert found.report["bytes"] < 0.75 * dense.report["bytes"]
    ahead = api.compress(model, "wanda:ratio=0.6", calibration=text, dry_run=True)
    assert abs(ahead.report["bytes"] / found.report["bytes"] - 1) < 0.1  # tiny: headers and rows cut to whole entries
    asked = api.compress(model, "magnitude_pruning:bytes=0.7", calibration=text, out=tmp_path / "bytes")
    assert asked.report["bytes"] <= 0.72 * dense.report["bytes"]
    with pytest.raises(UnsupportedError, match="save no bytes"):
        api.compress(model, "magnitude_pruning:bytes=0.7", calibration=text, out=tmp_path / "no", dense_zeros=True)
    small = api.compress(str(tmp_path / "few"), "rtn:bits=8", out=tmp_path / "both")  # a sparse folder goes on as plain weights
    assert {layer.kind for layer in layers(small.model).values()} == {"int8"}
    held = api.compress(found.model, "magnitude_pruning:ratio=0.8").model  # as one in memory does, which stays as it was
    assert not layers(held) and layers(found.model)
    assert all((held.get_submodule(name).weight == 0).float().mean() >= 0.8 for name in layers(found.model))
