"""Kinds of few bits: every field comes back, widened they are the same weights, folders weigh what they hold."""

import json

import pytest
import torch

from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model
from lithe.errors import FormatError, UsageError
from lithe.kernels.pack import unpack
from lithe.model import checkpoint
from lithe.model.load import load
from lithe.model.narrow import NARROW, Narrow, bytes_of, fields, made, widen
from lithe.model.packing import layers

CASES = [("int2", 50, 32), ("int3", 384, 128), ("int3", 40, 64), ("int2z", 70, 32), ("int3z", 33, 32), ("int4z", 70, 32),
         ("dual4", 50, 32), ("vector8", 50, 4), ("vector8", 16, 8)]


def drawn(kind, n, k, group):
    dice = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=dice).half() if bits == 16
            else torch.randint(0, 8 if name == "step" else 2**bits, shape, generator=dice)
            for name, (shape, bits) in fields(kind, n, k, group).items()}


@pytest.mark.parametrize(("kind", "k", "group"), CASES)
def test_fields_come_back_and_kernels_get_the_same_weights(kind, k, group):
    found = drawn(kind, 10, k, group)
    held = made(kind, k, group, **found)
    for name, tensor in found.items():
        assert torch.equal(held.field(name).to(tensor.dtype), tensor), name
    assert torch.equal(unpack(held.widened()).float(), held.weight())
    assert held.data.numel() == bytes_of(kind, 10, k, group)


def test_a_weight_is_what_the_table_says():
    found = drawn("int3z", 2, 40, 32)
    scale, zero = (found[name].float().repeat_interleave(32, 1)[:, :40] for name in ("scale", "zero"))
    assert torch.equal(made("int3z", 40, 32, **found).weight(), (scale * (found["codes"] - zero)).bfloat16().float())
    found = drawn("vector8", 2, 8, 4)
    by_hand = torch.cat([found["book"][found["codes"][:, i]].float() for i in (0, 1)], 1) * found["scale"].float()[:, None]
    assert torch.equal(made("vector8", 8, 4, **found).weight(), by_hand.bfloat16().float())


@pytest.mark.parametrize("break_it", [
    lambda f: made("int2", 40, 32, **f | {"codes": f["codes"] + 9}), lambda f: made("int2", 40, 32, codes=f["codes"]),
    lambda f: made("int2", 40, 7, **f), lambda f: made("int5", 40, 32, **f),
    lambda f: made("int2", 40, 32, **f | {"scale": f["scale"] + float("inf")}),
    lambda f: Narrow(torch.zeros(3, dtype=torch.uint8), "int2", 2, 40, 32),
    lambda f: made("dual4", 40, 32, scale=torch.ones(2), step=torch.full((2, 2), 255), zero=torch.zeros(2, 2),
                   codes=torch.full((2, 40), 15))])
def test_what_cannot_be_is_refused(break_it):
    with pytest.raises(UsageError):
        break_it(drawn("int2", 2, 40, 32))


@pytest.mark.parametrize("step", ["rtn:bits=2", "rtn:bits=3,group=-1", "hqq:bits=3", "dgq:bits=4,rows=2",
                                  "pv_tuning:bits=2,rounds=1"])
def test_folders_hold_few_bits_and_run_the_same_widened(step, tmp_path):
    model = compress(copied(small_model()).float(), [step], text()).model
    checkpoint.save(model, tmp_path / "m")
    again = checkpoint.load(tmp_path / "m")
    assert torch.equal(logits(model), logits(again))
    for layer in layers(again).values():
        assert layer.kind in NARROW
        assert layer.data.numel() == bytes_of(layer.kind, layer.out_features, layer.in_features, layer.group)
    assert torch.equal(logits(widen(again)), logits(model))
    assert not any(layer.kind in NARROW for layer in layers(load(tmp_path / "m")).values())


def test_a_folder_that_names_another_kind_is_refused(tmp_path):
    model = compress(copied(small_model()).float(), ["rtn:bits=3"], text()).model
    checkpoint.save(model, tmp_path / "m")
    own = json.loads((tmp_path / "m" / "lithe.json").read_text())
    for entry in ({"kind": "int9", "group": 32}, {"kind": "int3", "group": 7}, {"kind": "vector8", "group": 32},
                  {"kind": "int2"}):
        broken = own | {"packed": own["packed"] | {"layers.0.mlp.up_proj": entry}}
        (tmp_path / "m" / "lithe.json").write_text(json.dumps(broken))
        with pytest.raises(FormatError, match=r"layers\.0\.mlp\.up_proj"):
            checkpoint.load(tmp_path / "m")
