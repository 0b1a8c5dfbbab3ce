"""Bytes that a method holds: once each, without what is the target's."""

import numpy as np
import torch
from torch import nn

from lithe.bench.held import held_mb
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.sampling.sequence import Sequence
from tests.kernels.test_express import fused
from tests.kernels.variants import compiled


class Holder:
    __slots__ = ("rows",)


def test_what_is_shared_counts_once_and_what_is_the_targets_not_at_all():
    target, own = nn.Linear(1000, 500, bias=False), torch.zeros(100_000)
    table = np.zeros(300_000, np.int32)
    holder = Holder()
    holder.rows = (own[:10], own.view(100, 1000), table[5:], table)
    draft = {"target": target, "layers": [holder], "again": holder, "head": nn.Linear(100, 100, bias=False)}
    near = lambda found, wanted: abs(found - wanted) < 0.01  # Python's own containers are small
    assert near(held_mb((draft,), (target,)), 0.4 + 1.2 + 0.04)
    assert near(held_mb((draft,), ()), 0.4 + 1.2 + 0.04 + 2.0)
    assert held_mb((target,), (draft,)) == 0


def test_a_list_of_many_numbers_is_not_free():
    assert 8e-3 < held_mb(([*range(1000)],), ()) < 1e-1


@compiled
def test_tables_count_after_rounds_in_c_though_a_cache_knows_the_draft():
    model = fused(layers=2)
    made = plan(model, draft="token_recycling:nodes=7")
    size = lambda: held_mb((made.draft, made.search, *made.parts), (model, made.lanes))
    fresh = size()
    list(run(made, [Sequence([3, 4, 5, 3, 4, 5, 3], limit=20, context=64)]))
    assert size() > fresh / 2 > 0.001
