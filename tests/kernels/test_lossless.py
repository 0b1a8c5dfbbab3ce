"""The contracts of drafts on the fast path: in every precision, not one token differs from plain decoding."""

import copy
from functools import cache

import pytest
import torch

from lithe import registry
from lithe.contracts import draft
from lithe.contracts.small import small_model
from lithe.model.fast import fuse
from tests.kernels.variants import compiled

KINDS = [("bf16", 0, torch.bfloat16), ("int8", 32, torch.bfloat16),
         pytest.param("int4", 32, torch.float32, marks=pytest.mark.slow)]  # fmt: skip


@compiled
@pytest.mark.parametrize("entry", registry.entries("decode", "draft"), ids=lambda entry: entry.name)
@pytest.mark.parametrize(("kind", "group", "dtype"), KINDS)
def test_same_tokens(entry, kind, group, dtype, monkeypatch):
    if "same_tokens" not in entry.card.promises:
        pytest.skip("it does not promise the same tokens")
    fused = cache(lambda **shape: fuse(copy.deepcopy(small_model(**shape)).to(dtype), kind, group))
    monkeypatch.setattr(draft, "small_model", fused)
    draft.check_same_tokens(entry)
    assert not fused(seed=0).fast.why
