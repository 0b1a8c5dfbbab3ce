"""Exported folders: transformers gives the logits of the model that was exported."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from lithe.cli import run
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.contracts.compressing import IDS, text
from lithe.contracts.small import small_model
from lithe.errors import UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.decoder import ALL
from lithe.model.export import export, plain, words
from lithe.model.narrow import _write


def of(step):
    return compress(copied(small_model()).float(), step.split(" ; "), text()).model


def logits_of(model):
    """Of the same weights in plain float32, activations unrounded."""
    with torch.no_grad():
        return plain(model)[0](IDS, logits=ALL).scores


def theirs(folder):
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


@pytest.mark.parametrize(("step", "told"), [
    ("magnitude_pruning:unit=channel,ratio=0.4 + allocate=cfsp", "padded"), ("shortgpt:ratio=0.15,unit=half", "padded"),
    ("magnitude_pruning:unit=head,ratio=0.5", ""), ("svd:rank=8", "products"), ("pv_tuning:bits=2,rounds=1", ""),
    ("hqq:bits=3", "")])
def test_stock_floats_give_the_same_logits(step, told, tmp_path):
    model = of(step)
    notes = export(model, tmp_path / "m", "plain")
    assert not told or any(told in note for note in notes)
    with torch.no_grad():
        own = model(IDS, logits=ALL).scores if "bits" not in step else logits_of(model)
    assert (theirs(tmp_path / "m") - own).abs().max() < 1e-4
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("step", ["rtn:bits=4", "rtn:bits=8,group=-1", "gptq:bits=3", "rtn:bits=2", "dgq:bits=4,rows=2",
                                  "rtn:bits=4,sites=mlp.*", "shortgpt:ratio=0.15,unit=half ; rtn:bits=4"])
def test_transformers_reads_whole_numbers(step, tmp_path):
    pytest.importorskip("compressed_tensors")
    model = of(step)
    export(model, tmp_path / "m", "compressed-tensors")
    assert (theirs(tmp_path / "m") - logits_of(model)).abs().max() < 1e-4
    held = load_file(tmp_path / "m" / "model.safetensors")
    assert any(name.endswith("weight_packed") and tensor.dtype == torch.int32 for name, tensor in held.items())


@pytest.mark.parametrize(("step", "bits"), [("rtn:bits=4", 4), ("gptq:bits=8", 8), ("rtn:bits=2,group=-1", 2)])
def test_gptq_folders_open_to_the_same_weights(step, bits, tmp_path):
    model = of(step)
    export(model, tmp_path / "m", "gptq")
    held = load_file(tmp_path / "m" / "model.safetensors")
    name = "layers.1.mlp.down_proj"
    take = lambda key: held[f"model.{name}.{key}"]
    opened = lambda word: ((word[..., None] >> (bits * torch.arange(32 // bits))) & (2**bits - 1))
    code_KN = opened(take("qweight").T).flatten(1).T
    zero_GN = opened(take("qzeros")).flatten(1) + 1
    where = take("g_idx").long()
    weight_KN = take("scales").float()[where] * (code_KN - zero_GN[where])
    assert torch.equal(weight_KN.T, model.get_submodule(name).weight)
    said = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert (said["bits"], said["quant_method"]) == (bits, "gptq")


def test_words_hold_codes_low_bits_first():
    code = torch.randint(0, 8, (3, 64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(words(code, 3).contiguous().view(torch.uint8).flatten(), _write(code, 3))


def test_what_a_layout_cannot_say_is_told_or_refused(tmp_path):
    mixed = of("rtn:bits=4,sites=mlp.*")
    with pytest.raises(UnsupportedError, match="one width"):
        export(mixed, tmp_path / "m", "gptq")
    with pytest.raises(UnsupportedError, match="no whole-number weights"):
        export(copied(small_model()), tmp_path / "m", "compressed-tensors")
    with pytest.raises(UnsupportedError, match="rounded inputs"):
        export(of("smoothquant:bits=8,input_bits=8"), tmp_path / "m", "plain")
    with pytest.raises(UsageError, match="no layout"):
        export(mixed, tmp_path / "m", "gguf")
    assert not (tmp_path / "m").exists()


def test_the_command(tmp_path, capsys):
    checkpoint.save(of("rtn:bits=4"), tmp_path / "m")
    assert run(["export", str(tmp_path / "m"), "-o", str(tmp_path / "out"), "--layout", "compressed-tensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"] == [] and told["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert run(["export", str(tmp_path / "m"), "-o", str(tmp_path / "out")]) == 2  # not empty
