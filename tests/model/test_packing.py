"""Packed folders: bit for bit without the original, nothing beside the packed bytes in memory, and nothing strange let in."""

import contextlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lithe.errors import FormatError, LitheError, TooLargeError, UnsupportedError, UsageError
from lithe.kernels import library
from lithe.kernels.pack import pack
from lithe.model import checkpoint, linear
from lithe.model.cache import PlainCache
from lithe.model.checkpoint import fingerprint, is_packed, read_config, save
from lithe.model.config import Config
from lithe.model.decoder import ALL, Decoder
from lithe.model.fast import fuse
from lithe.model.linear import PackedLinear
from lithe.model.load import load
from lithe.model.precision import Precision, precision
from tests.model import families_zoo as zoo

torch.set_num_threads(1)
IDS = torch.randint(0, 96, (1, 24), generator=torch.Generator().manual_seed(1))
SMALL = Config(vocab=96, width=64, layers=2, heads=4, kv_heads=2, ffn=96, context=64, tied=True)
WHOLE = ["int8", "int8:128", "int8:column", "int4:32", "int4:128"]
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(IDS, cache=PlainCache.like(model), logits=ALL).logits


def bytes_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}


def same(a, b) -> bool:
    x, y = bytes_of(a), bytes_of(b)
    return x.keys() == y.keys() and all(x[n].dtype == y[n].dtype and torch.equal(x[n], y[n]) for n in x)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder of int4 weights that stays as it is."""
    folder = tmp_path_factory.mktemp("packed")
    save(Decoder(SMALL).init(0), folder / "plain")
    return save(load(folder / "plain", dtype="int4"), folder / "packed")


@pytest.fixture
def spoiled(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("case", ["llama", "llama-mha", "qwen2", "qwen3", "gemma2", "phi3", "mixtral", "bitnet"])
def test_a_packed_folder_needs_no_original(case, tmp_path):
    zoo.make(case).save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", dtype=WHOLE[len(case) % len(WHOLE)])
    expected = logits(model)
    save(model, tmp_path / "packed")
    shutil.rmtree(tmp_path / "plain")
    back = load(tmp_path / "packed")
    assert same(model, back) and torch.equal(logits(back), expected)
    assert (precision(back), back.dtype, back.config) == (precision(model), model.dtype, model.config)
    assert back.kernels == model.kernels and (library.load() is None or back.fast.why == model.fast.why)
    save(back, tmp_path / "again", shard_bytes=3000)
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 2
    assert same(load(tmp_path / "again"), back) and fingerprint(tmp_path / "again") == fingerprint(tmp_path / "packed")


@pytest.mark.parametrize("dtype", WHOLE)
def test_packed_while_read_is_packed_afterwards(dtype, tmp_path):
    save(Decoder(SMALL.replace(qkv_bias=True, width=160, heads=5, kv_heads=1, head_dim=32, ffn=192)).init(0), tmp_path / "m")
    wanted = Precision.of(dtype)
    later = fuse(load(tmp_path / "m", fast=False).to(torch.bfloat16), wanted.kind, wanted.group)
    once = fuse(load(tmp_path / "m", fast=False), wanted.kind, wanted.group)
    model = load(tmp_path / "m", dtype=dtype)
    assert torch.equal(model.lm_head.data, once.lm_head.data)  # from the weights as stored, not as cast
    assert {n: t.shape for n, t in bytes_of(model).items()} == {n: t.shape for n, t in bytes_of(later).items()}
    assert precision(model) == (dtype if ":" in dtype else f"{dtype}:32")


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", [(1, 5), (32, 64), (131, 70), (96, 33)])
def test_pieces_are_the_whole(kind, shape, monkeypatch):
    monkeypatch.setattr(linear, "PIECE", 64)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for group in (0,) if kind in ("fp32", "bf16") else (32, 128, -1):
        whole, pieces = pack(weight, kind, group), linear.pack_pieces(weight, kind, group)
        assert torch.equal(whole.data, pieces.data) and (whole.n, whole.k, whole.group) == (pieces.n, pieces.k, pieces.group)


@pytest.mark.skipif(library.load() is None, reason="floats are packed for compiled kernels only")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["llama", "qwen2", "phi3", "mixtral"])
def test_packed_floats_are_saved_as_what_they_were(case, dtype, tmp_path):
    zoo.make(case).to(Precision.of(dtype).dtype).save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", dtype=dtype)
    assert model.fast is not None and not any(isinstance(module, nn.Linear) for module in model.modules())
    save(model, tmp_path / "saved")
    assert not is_packed(tmp_path / "saved")
    before, after = load_file(tmp_path / "plain/model.safetensors"), load_file(tmp_path / "saved/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)


def test_single_precision_under_a_shorter_one_is_not_rounded(tmp_path):
    model = Decoder(SMALL).init(0)
    wide = model.layers[0].mlp.up_proj.weight.detach().clone()
    model.to(torch.bfloat16).sites("layers.0.mlp.up_proj")[0].swap(PackedLinear(pack(wide, "fp32")))
    save(model, tmp_path / "m")
    assert torch.equal(load_file(tmp_path / "m/model.safetensors")["model.layers.0.mlp.up_proj.weight"], wide)


def test_what_was_swapped_stays_and_what_fits_nowhere_is_told(packed, tmp_path):
    model = load(packed)
    model.sites("layers.1.mlp.up_proj")[0].swap(nn.Linear(64, 96, bias=False).to(torch.bfloat16))
    model.sites("layers.0.mlp.up_proj")[0].swap(PackedLinear(pack(torch.randn(96, 64), "int8", 128)))
    save(model, tmp_path / "mixed")
    back = load(tmp_path / "mixed", fast=False)
    assert same(back, model) and type(back.layers[1].mlp.up_proj) is nn.Linear
    assert precision(back) == "int4:32+int8:128"
    model.sites("layers.0.mlp.up_proj")[0].swap(PackedLinear(pack(torch.randn(95, 64), "int8", 128)))
    with pytest.raises(UnsupportedError, match=r"layers\.0\.mlp\.up_proj\.data"):
        save(model, tmp_path / "odd")
    with pytest.raises(UnsupportedError, match="saved as they are, not in"):
        save(back, tmp_path / "odd", dtype=torch.float32)
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize(("dtype", "error", "said"), [
    ("int9", UsageError, "no dtype 'int9'; did you mean int"), ("int8:64", UsageError, "groups of int8 weights are 32, 128"),
    ("int4:", UsageError, "groups of int4"), ("bf16:32", UsageError, "only int8 and int4"), ("", UsageError, "no dtype ''"),
])  # fmt: skip
def test_precisions_that_are_none(packed, dtype, error, said):
    with pytest.raises(error, match=said):
        load(packed, dtype=dtype)


def test_where_packed_weights_cannot_go(packed, tmp_path, monkeypatch):
    save(Decoder(SMALL).init(0), tmp_path / "m")
    with pytest.raises(UnsupportedError, match="int8 weights run on a CPU, not on meta"):
        load(tmp_path / "m", dtype="int8", device="meta")
    for dtype in ("fp32", "int8", "int4"):
        with pytest.raises(UnsupportedError, match=f"leave dtype={dtype} out"):
            load(packed, dtype=dtype)
    with pytest.raises(UnsupportedError, match="load on a CPU"):
        load(packed, device="meta")
    assert load(packed, dtype=torch.float32).norm.weight.dtype == torch.float32  # of the rest: what a draft asks of its model
    monkeypatch.setattr(checkpoint, "available_memory", lambda device: 75_000)
    load(tmp_path / "m", dtype="int4")
    with pytest.raises(TooLargeError, match="GB of memory in int8"):
        load(tmp_path / "m", dtype="int8")


UP = "layers.0.mlp.up_proj"
LIES = {
    "no object": (lambda own: own.update(packed=[1]), "packed must be an object"),
    "a layer that is not there": (lambda own: own["packed"].update({"layers.9.x": own["packed"][UP]}), r"names 'layers\.9\.x'"),
    "a norm": (lambda own: own["packed"].update(norm=own["packed"][UP]), "names 'norm', which is no linear layer"),
    "an unknown kind": (lambda own: own["packed"][UP].update(kind="int5"), r"must have a kind \(fp32, bf16, int8, int4"),
    "another kind": (lambda own: own["packed"][UP].update(kind="int8"), r"up_proj\.data has shape \[\d+\], config"),
    "a group that is none": (lambda own: own["packed"][UP].update(group=33), "groups of 33: choose 32, 128 or 64"),
    "a group that is no number": (lambda own: own["packed"][UP].update(group=32.0), r"a group of 32\.0 is no whole number"),
    "floats with groups": (lambda own: own["packed"][UP].update(kind="bf16"), "so no groups"),
    "more than kind and group": (lambda own: own["packed"][UP].update(bits=4), "must have a kind"),
    "a layer too few": (lambda own: own["packed"].pop(UP), r"needs layers\.0\.mlp\.up_proj\.weight"),
    "none": (lambda own: own.pop("packed"), "which no file holds"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_about_packed_weights(spoiled, name):
    spoil, said = LIES[name]
    own = json.loads((spoiled / "lithe.json").read_text())
    spoil(own)
    (spoiled / "lithe.json").write_text(json.dumps(own))
    with pytest.raises(FormatError, match=said):
        load(spoiled)


@pytest.mark.parametrize(("change", "said"), [
    (lambda s: s.update({f"{UP}.data": s[f"{UP}.data"][:-64]}), "has shape"),
    (lambda s: s.update({f"{UP}.data": s[f"{UP}.data"].view(torch.int8)}), "is I8"),
    (lambda s: s.update({f"{UP}.data": s[f"{UP}.data"].view(2, -1)}), "has shape"),
    (lambda s: s.update({f"{UP}.weight": torch.ones(96, 64)}), "for which .* has no place"),
    (lambda s: s.pop(f"{UP}.data"), "needs")])  # fmt: skip
def test_wrong_packed_tensors_are_named(spoiled, change, said):
    state = load_file(spoiled / "model.safetensors")
    change(state)
    save_file(state, spoiled / "model.safetensors")
    with pytest.raises(FormatError, match=said):
        load(spoiled)


def test_scales_that_cannot_be_are_told_with_their_tensor(tmp_path):
    model = Decoder(SMALL).init(0)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    save(model, tmp_path / "m")
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.up_proj\.weight: .*no numbers"):
        load(tmp_path / "m", dtype="int8")


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)

ENTRY = st.fixed_dictionaries({"kind": st.sampled_from(["int8", "int4", "fp32", "bf16"]) | SCALAR,
                               "group": st.sampled_from([0, 32, 64, 128, -1]) | SCALAR})


@FUZZ
@given(st.dictionaries(st.sampled_from([UP, "lm_head", "embed_tokens", "norm", "", "layers.0"]), SCALAR | ENTRY,
                       max_size=3), st.booleans())
def test_any_packed_settings(packed, tmp_path_factory, raw, added):
    folder = tmp_path_factory.getbasetemp() / "any-packed"
    shutil.copytree(packed, folder, dirs_exist_ok=True)
    own = json.loads((packed / "lithe.json").read_text())
    own["packed"] = own["packed"] | raw if added else raw
    (folder / "lithe.json").write_text(json.dumps(own))
    with contextlib.suppress(LitheError):
        assert logits(load(folder)).shape == (1, 24, 96)


@FUZZ
@given(st.integers(0, 5000), st.integers(0, 255))
def test_any_flipped_byte_of_a_packed_folder(packed, tmp_path_factory, at, value):
    folder = tmp_path_factory.getbasetemp() / "flipped-packed"
    folder.mkdir(exist_ok=True)
    for file in ("config.json", "lithe.json", "model.safetensors"):
        data = bytearray((packed / file).read_bytes())
        data[at % len(data)] = value
        (folder / file).write_bytes(data)
    with contextlib.suppress(LitheError):
        assert logits(load(folder)).shape == (1, 24, read_config(folder).vocab)


PEAK = """
import sys
from lithe.bench.measure import peak_mb, restart_peak
from lithe.model.load import load
for dtype in ("int8", "fp32"):
    load(sys.argv[2], dtype=dtype)
    restart_peak()
    before = peak_mb()
    tensors = load(sys.argv[1], dtype=dtype).state_dict().values()
    print(peak_mb() - before, sum(t.numel() * t.element_size() for t in tensors if hasattr(t, "numel")) / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be restarted on Linux only")
def test_one_layout_of_the_weights_in_memory(tmp_path):
    with torch.device("meta"):
        model = Decoder(SMALL.replace(width=768, heads=12, kv_heads=4, ffn=2048, layers=3, vocab=8192))
    model.to_empty(device="cpu").load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()})
    save(model, tmp_path / "m", dtype=torch.bfloat16)
    save(Decoder(SMALL), tmp_path / "small")
    ran = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "m", tmp_path / "small"], capture_output=True, text=True,
                         timeout=100)
    for line in ran.stdout.splitlines():
        peak, packed_mb = map(float, line.split())
        assert packed_mb - 5 < peak < packed_mb + 45, ran.stdout  # one layout, the largest tensor's 13 MB, and small change
    assert ran.stdout.count("\n") == 2, ran.stderr
