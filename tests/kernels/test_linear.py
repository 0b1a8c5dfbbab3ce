"""Skinny products: parity with the slow twin, row invariance, thread counts, strides, and no step outside a buffer."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st

from lithe.kernels import library, twins
from lithe.kernels.linear import linear, rows as rows_of
from lithe.kernels.pack import pack, pack_levels, unpack
from tests.kernels.variants import VARIANTS, every_variant, every_weight

TOLERANCE = 1e-5


def close(y, expected, scale=TOLERANCE):
    return float((y - expected).abs().max()) <= scale * max(float(expected.abs().max()), 1e-6)


def case(kind, group, n, k, rows, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return pack(torch.randn(n, k, generator=dice) / k**0.5, kind, group), torch.randn(rows, k, generator=dice)


@every_variant
@every_weight
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 150), k=st.integers(1, 400), rows=st.sampled_from([*range(1, 34), 64]), threads=st.integers(1, 3),
       biased=st.booleans(), gap=st.integers(0, 5), seed=st.integers(0, 99))
def test_parity_with_the_twin(kernels, kind, group, n, k, rows, threads, biased, gap, seed):
    packed, _ = case(kind, group, n, k, 1, seed)
    x = torch.randn(rows, k + gap, generator=torch.Generator().manual_seed(seed))[:, :k]  # rows with a gap between them
    bias = torch.linspace(-1, 1, n) if biased else None
    assert close(linear(packed, x, bias, threads=threads, kernels=kernels), twins.linear(packed, x, bias))


@every_variant
@every_weight
def test_rows_do_not_depend_on_company_or_threads(kernels, kind, group):
    for n, k in ((96, 64), (37, 75), (160, 288)):
        packed, x = case(kind, group, n, k, 64)
        alone = torch.cat([linear(packed, row[None], threads=1, kernels=kernels) for row in x])
        for rows in (*range(1, 34), 64):
            assert torch.equal(linear(packed, x[:rows], threads=1 + rows % 3, kernels=kernels), alone[:rows]), (n, k, rows)
            assert torch.equal(linear(packed, x[64 - rows :], threads=1 + rows % 4, kernels=kernels), alone[64 - rows :])


def test_pytorchs_own_product_is_not_row_invariant():
    """The negative control: what the test above demands is not true of everything. It may be, one day, of a given PyTorch."""
    dice = torch.Generator().manual_seed(0)
    w, x = torch.randn(576, 576, generator=dice), torch.randn(64, 576, generator=dice)
    alone = torch.cat([F.linear(row[None], w) for row in x])
    if all(torch.equal(F.linear(x[:rows], w), alone[:rows]) for rows in (2, 3, 8, 33, 64)):
        pytest.skip("this PyTorch gives the same rows here, so there is nothing to control against")


@every_weight
def test_variants_agree(kind, group):
    packed, x = case(kind, group, 100, 300, 9)
    results = [linear(packed, x, kernels=library.variant(name)) for name in VARIANTS]
    assert all(close(y, results[0]) for y in results)


def test_whole_number_kinds_agree_bit_for_bit_with_exact_scales(kernels):
    """With scales that are powers of two no rounding is left, so the kernel must equal plain arithmetic."""
    dice = torch.Generator().manual_seed(0)
    for kind, low, high in (("int8", -127, 127), ("int4", -8, 7)):
        levels = torch.randint(low, high + 1, (70, 96), generator=dice, dtype=torch.int8)
        levels[:, 0] = low
        packed = pack_levels(levels, torch.full((70, 3), 0.5), kind)
        x = torch.randint(-127, 128, (5, 96), generator=dice).float()
        x[:, ::32] = 127
        assert torch.equal(linear(packed, x, kernels=kernels), x @ levels.float().T * 0.5), kind


@every_variant
def test_zeros_subnormals_and_large_values(kernels):
    packed, x = case("int8", 32, 33, 65, 4)
    x[0], x[1], x[2] = 0, 1e-39, x[2] * 1e30
    assert close(linear(packed, x, kernels=kernels), twins.linear(packed, x))


@every_variant
@every_weight
def test_rows_of_weights_are_read_back(kernels, kind, group):
    for n, k in ((70, 75), (33, 160)):
        packed, _ = case(kind, group, n, k, 1)
        wanted = torch.tensor([n - 1, 0, 31, 32, 15, 0])
        assert torch.equal(rows_of(packed, wanted, kernels=kernels), unpack(packed, wanted).float())


def test_without_kernels_the_twin_answers(monkeypatch):
    monkeypatch.setenv("LITHE_KERNELS", "off")
    packed, x = case("int4", 32, 40, 64, 3)
    assert torch.equal(linear(packed, x), twins.linear(packed, x))


@every_variant
def test_columns_of_other_strides(kernels):
    packed, x = case("fp32", 0, 40, 64, 6)
    assert torch.equal(linear(packed, x.T.contiguous().T, kernels=kernels), linear(packed, x, kernels=kernels))
    assert torch.equal(linear(packed, x[:1].expand(3, 64), kernels=kernels)[2], linear(packed, x, kernels=kernels)[0])
    assert linear(packed, x[:0], kernels=kernels).shape == (0, 40)
