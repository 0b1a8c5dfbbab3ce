"""Hydragen: who is read together, how little memory a prefix takes, and that compiled attention gives the same bits."""

import pytest
import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.model.fast import fuse
from lithe.model.paged import PagedCache, Pages, Table
from lithe.serve.engine import Engine
from lithe.serve.request import Request
from tests.kernels.test_block import KINDS, decoder
from tests.kernels.variants import compiled


def group(pages, **knobs):
    entry = registry.find("attention/share/hydragen")
    return entry.module.Method(entry.knobs(**knobs)).group(pages, 16)


def test_those_that_share_most_are_neighbours():
    a, b, c = [1, 2, 3, 4, 5], [1, 2, 3, 4, 9], [1, 2, 3, 7, 8]
    assert group([a, c, b], tokens=48) == [[0, 2, 1]]
    assert group([a, [6, 7, 8, 9], c], tokens=48) == [[0, 2], [1]]


def test_too_few_or_too_short_are_read_apart():
    a, b = [1, 2, 3, 4], [1, 2, 3, 9]
    assert group([a, b], tokens=65) == [[0], [1]]
    assert group([a, b, [5, 6, 7, 8]], sequences=3) == [[0], [1], [2]]


@compiled
@pytest.mark.parametrize(("kind", "group_size", "dtype"), KINDS)
def test_trees_of_prefixes_give_the_same_bits(kind, group_size, dtype):
    """Three levels, branches inside one chunk of keys and past it, rows of different numbers."""
    model = fuse(decoder().to(dtype), kind, group_size)
    entry = registry.find("attention/share/hydragen")
    store = Pages.like(model, pages=200, size=16)
    dice = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(0, 50, (n,), generator=dice).tolist()

    def read(tables, rows, share=None):
        cache = PagedCache(store, tables, share)
        counts = list(map(len, rows))
        out = model(torch.tensor([t for row in rows for t in row])[:, None], counts=counts, cache=cache).scores[:, 0]
        cache.commit(counts)
        return out

    root, tables = Table(), []
    with torch.inference_mode():
        read([root], [draw(272)])
        for branch in (64, 16):
            inner = store.fork(root)
            read([inner], [draw(branch)])
            for leaf in (3, 40, 1):
                tables.append(store.fork(inner))
                read(tables[-1:], [draw(leaf)])
        rows = [draw(n) for n in (1, 1, 5, 1, 2, 1)]
        apart = [store.fork(table) for table in tables]
        together = read(tables, rows, entry.module.Method(entry.knobs()).group)
        assert torch.equal(together, torch.cat([read([table], [row]) for table, row in zip(apart, rows, strict=True)]))


def test_a_shared_prefix_is_read_and_kept_once():
    """Memory: the prefix and what is each one's own; rows: the prefix once."""
    model = small_model()
    engine = Engine(model, page=4, budget=64, sequences=8)
    start = [5 + i % 20 for i in range(40)]
    tickets = [engine.submit(Request(prompt=(*start, 1 + b), max_tokens=6, ignore_eos=True)) for b in range(8)]
    most = 0
    while engine.step():
        most = max(most, engine.room.store.count - len(engine.room.store.free))
    assert all(ticket.finished for ticket in tickets)
    assert most <= 10 + 8 * 3  # ten pages of prefix, three for the end of each prompt, its text and the row to come
    assert engine.counts["rows"] <= 40 + 8 * (1 + 6)
    alone = Engine(model, page=4, budget=64, sequences=8, sharing=False)
    for b in range(8):
        alone.submit(Request(prompt=(*start, 1 + b), max_tokens=6, ignore_eos=True))
    while alone.step():
        pass
    assert alone.counts["rows"] >= 8 * 41


def test_without_pages_in_common_it_is_every_sequence_by_itself():
    """The negative control: the same texts, each on pages of its own, are never read together."""
    assert group([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]) == [[0], [1], [2]]
    assert group([]) == []
