"""Products with few weights: the bits of the dense kernel in either form, row invariance, and matrices that come back whole."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from lithe.errors import UsageError
from lithe.kernels import build, library, sparse
from lithe.kernels.linear import linear
from lithe.kernels.pack import pack
from tests.kernels.test_build import sanitized
from tests.kernels.test_linear import close
from tests.kernels.variants import VARIANTS, compiled, every_variant

KIND = pytest.mark.parametrize("kind", sparse.KINDS)
FORM = pytest.mark.parametrize("strips", [False, True], ids=["bitmap", "strips"])


def case(kind, n, k, rows, share=0.6, seed=0):
    dice = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=dice) / k**0.5 * (torch.rand(n, k, generator=dice) >= share)
    return weight.to(sparse.KINDS[kind]), torch.randn(rows, k, generator=dice)


@every_variant
@KIND
@FORM
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 150), k=st.integers(1, 400), rows=st.sampled_from([*range(1, 20), 33, 70]), threads=st.integers(1, 3),
       share=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]), biased=st.booleans(), gap=st.integers(0, 5), seed=st.integers(0, 99))
def test_the_dense_kernels_bits_and_the_twin(kernels, kind, strips, n, k, rows, threads, share, biased, gap, seed):
    weight, _ = case(kind, n, k, 1, share, seed)
    held = sparse.ready(sparse.pack(weight, kind), strips)
    x = torch.randn(rows, k + gap, generator=torch.Generator().manual_seed(seed))[:, :k]  # rows with a gap between them
    bias = torch.linspace(-1, 1, n) if biased else None
    y = sparse.linear(held, x, bias, threads=threads, kernels=kernels)
    assert close(y, sparse.twin(held, x, bias))
    assert torch.equal(y, linear(pack(weight.float(), "fp32"), x, bias, kernels=kernels))


@every_variant
@KIND
@FORM
def test_rows_do_not_depend_on_company_or_threads(kernels, kind, strips):
    for n, k in ((96, 64), (37, 75)):
        weight, x = case(kind, n, k, 64)
        x[5, 3], x[9, 0] = torch.inf, torch.nan  # what is no number stays in its row
        held = sparse.ready(sparse.pack(weight, kind), strips)
        alone = torch.cat([sparse.linear(held, row[None], threads=1, kernels=kernels) for row in x])
        same = lambda a, b: torch.equal(a.nan_to_num(7), b.nan_to_num(7)) and torch.equal(a.isnan(), b.isnan())
        for rows in (1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 64):
            assert same(sparse.linear(held, x[:rows], threads=1 + rows % 3, kernels=kernels), alone[:rows]), (n, k, rows)
            assert same(sparse.linear(held, x[64 - rows :], threads=1 + rows % 4, kernels=kernels), alone[64 - rows :])


@KIND
def test_a_matrix_comes_back_bit_for_bit_in_the_bytes_that_are_told(kind):
    for n, k, share in ((32, 64, 0.5), (37, 75, 0.9), (1, 1, 0.0), (40, 33, 1.0)):
        weight, _ = case(kind, n, k, 1, share)
        stored = sparse.pack(weight, kind)
        assert torch.equal(sparse.unpack(stored), weight) and stored.count == int(weight.count_nonzero())
        assert len(stored.data) == -(-n // 32) * k * 4 + stored.count * weight.itemsize + 64
        for strips in (False, True):
            held = copy.deepcopy(sparse.ready(stored, strips))
            assert torch.equal(sparse.plain(held), weight) and torch.equal(sparse.stored(held).data, stored.data)


def test_bytes_that_lie_are_refused():
    weight, _ = case("sparse_fp32", 32, 16, 1)
    stored = sparse.pack(weight, "sparse_fp32")
    more = stored.data.clone()
    more[0] = 255 - more[0]  # other bits, as many values
    wrong = int(more[0]).bit_count() != int(stored.data[0]).bit_count()
    for data, count in ((more, stored.count), (stored.data[:-1], stored.count), (stored.data, stored.count + 1),
                        (stored.data, -1)):
        if data is more and not wrong:
            continue
        with pytest.raises(UsageError, match="values"):
            sparse.Sparse(data, "sparse_fp32", 32, 16, count)
    with pytest.raises(UsageError, match="cannot take"):
        sparse.linear(sparse.ready(stored), torch.zeros(2, 17))


@compiled
@pytest.mark.parametrize("name", [*VARIANTS[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS[1:])])
def test_sanitizers_find_nothing(name, tmp_path):
    sanitized(build.VARIANTS[name][1], tmp_path, "selftest_sparse.c")


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in VARIANTS, reason="its loops want AVX2")
def test_the_avx512_code_holds_where_no_processor_runs_it(tmp_path):
    flags = (*build.VARIANTS["avx2"][1], "-Wno-psabi", "-include", str(Path(__file__).with_name("emulated.h")))
    sanitized(flags, tmp_path, "selftest_sparse.c")


@pytest.mark.skipif(len(VARIANTS) < 2, reason="one variant only")
@KIND
@FORM
def test_variants_agree(kind, strips):
    weight, x = case(kind, 100, 300, 9)
    held = sparse.ready(sparse.pack(weight, kind), strips)
    results = [sparse.linear(held, x, kernels=library.variant(name)) for name in VARIANTS]
    assert all(close(y, results[0]) for y in results)


def test_without_kernels_the_twin_answers(monkeypatch):
    monkeypatch.setenv("LITHE_KERNELS", "off")
    weight, x = case("sparse_bf16", 40, 64, 3)
    held = sparse.ready(sparse.pack(weight, "sparse_bf16"))
    assert torch.equal(sparse.linear(held, x), sparse.twin(held, x))
