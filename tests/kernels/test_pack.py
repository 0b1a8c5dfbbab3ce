"""The pack layout: there and back, what is rounded, and what is refused."""

import pytest
import torch

from lithe.errors import UsageError
from lithe.kernels.pack import Packed, levels, pack, pack_levels, quantize, size, unpack
from lithe.model.linear import PackedLinear
from tests.kernels.variants import every_weight

SHAPES = ((1, 1), (32, 32), (37, 45), (64, 300), (96, 576))


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_floats_come_back_bit_for_bit(kind):
    for n, k in SHAPES:
        w = torch.randn(n, k).to(torch.float32 if kind == "fp32" else torch.bfloat16)
        assert torch.equal(unpack(pack(w, kind)), w)


@every_weight
def test_some_rows_are_those_of_the_whole(kind, group):
    packed = pack(torch.randn(70, 96), kind, group)
    rows = torch.tensor([69, 0, 31, 32, 15, 0])
    assert torch.equal(unpack(packed, rows), unpack(packed)[rows])


@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_levels_come_back_and_are_nearest(kind, group):
    for n, k in SHAPES:
        w = torch.randn(n, k)
        whole, scale = quantize(w, kind, group)
        packed = pack_levels(whole, scale, kind)
        back, scales = levels(packed, torch.arange(n))
        assert torch.equal(back, whole) and torch.equal(scales, scale)
        wide = scale.float().repeat_interleave(packed.group, 1)[:, :k]
        inside = (w / wide).abs() < (127 if kind == "int8" else 7)  # int4 has no +8, so its far side is cut off
        off = ((unpack(packed) - w).abs() / wide.abs())[inside]
        assert off.numel() == 0 or float(off.max()) <= 0.5001


def test_zero_weights_stay_zero():
    for kind in ("int8", "int4"):
        assert not unpack(pack(torch.zeros(5, 40), kind)).any()


def test_one_layout_is_as_small_as_the_weights():
    assert size("fp32", 64, 64) == 64 * 64 * 4 and size("bf16", 64, 64) == 64 * 64 * 2
    assert size("int8", 64, 64, 32) == 64 * 64 * 34 // 32 and size("int4", 64, 64, 32) == 64 * 64 * 18 // 32


def test_what_is_refused():
    w = torch.randn(32, 64)
    for wrong in (lambda: pack(w, "int3"), lambda: pack(w, "fp32", 32), lambda: pack(w, "int8", 48),
                  lambda: pack(w * 1e30, "int8"), lambda: pack(w * float("nan"), "int4"),
                  lambda: pack_levels(torch.full((4, 32), -128, dtype=torch.int8), torch.ones(4, 1), "int8"),
                  lambda: Packed(torch.zeros(3, dtype=torch.uint8), "fp32", 32, 32)):
        with pytest.raises(UsageError):
            wrong()


@every_weight
def test_a_packed_layer_saves_and_loads(kind, group):
    dense = torch.nn.Linear(40, 50)
    layer, other = PackedLinear.of(dense, kind, group), PackedLinear.of(torch.nn.Linear(40, 50), kind, group)
    x = torch.randn(2, 3, 40)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x)) and torch.equal(other.weight, layer.weight)
    assert layer(x).shape == (2, 3, 50) and layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert float((layer(x) - dense(x)).detach().abs().max()) < (0.3 if kind == "int4" else 0.05)
