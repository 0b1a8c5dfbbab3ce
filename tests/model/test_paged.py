"""Paged caches: bit for bit what plain ones give, whatever the page size, the company and what is shared; and nothing leaks."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lithe.errors import TooLargeError, UnsupportedError, UsageError
from lithe.model.cache import PlainCache
from lithe.model.decoder import ALL
from lithe.model.fast import fuse
from lithe.model.mask import FULL, Tree
from lithe.model.paged import PagedCache, Pages, Table
from tests.kernels.test_block import KINDS, decoder
from tests.kernels.variants import compiled

TREE = [-1, 0, 0, 1, 1, 2]
DEPTHS = [0, 1, 1, 2, 2, 2]


def text(rows, seed):
    return torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()


def together(first):
    """Every sequence whose first page is the same in one group."""

    def share(pages, size):
        groups = {}
        for b, held in enumerate(pages):
            groups.setdefault(held[0] if held and first else -b - 1, []).append(b)
        return list(groups.values())

    return share


@torch.inference_mode()
def plainly(model, prompt):
    """Logits after the prompt's last row, then of a tree behind it, then of one row behind the tree's path 0, 2, 5."""
    cache = PlainCache.like(model, capacity=len(prompt) + 8)
    found = [model(torch.tensor([prompt]), cache=cache).scores[0, 0]]
    cache.commit([len(prompt)])
    pos = torch.tensor([[len(prompt) + d for d in DEPTHS]])
    found.append(model(torch.tensor([text(6, 9)]), pos_BT=pos, cache=cache, mask=Tree([TREE]), logits=ALL).scores[0])
    cache.commit([[0, 2, 5]])
    found.append(model(torch.tensor([[7]]), cache=cache).scores[0, 0])
    return found


@torch.inference_mode()
def paged(model, prompts, size, cut, share):
    """The same of several prompts on one store, in passes without padding; the first `cut` tokens of all are read once."""
    store = Pages.like(model, pages=700, size=size)
    base = Table()
    cache = PagedCache(store, [base], share)
    for start in range(0, cut, 100):
        piece = prompts[0][start : min(start + 100, cut)]
        model(torch.tensor(piece)[:, None], counts=[len(piece)], cache=cache, logits="none")
        cache.commit([len(piece)])
    tables = [store.fork(base) for _ in prompts]
    cache = PagedCache(store, tables, share)
    left = [prompt[cut:] for prompt in prompts]
    rows = torch.tensor([token for piece in left for token in piece])[:, None]
    out = model(rows, counts=list(map(len, left)), cache=cache).scores[:, 0]
    cache.commit(list(map(len, left)))
    found = [[row] for row in out]
    pos = [[n + d] for n in cache.lengths for d in DEPTHS]
    trees = Tree([TREE] * len(prompts))
    out = model(torch.tensor(text(6, 9) * len(prompts))[:, None], pos_BT=pos, counts=[6] * len(prompts), cache=cache,
                mask=trees, logits=ALL).scores[:, 0]
    cache.commit([[0, 2, 5]] * len(prompts))
    last = model(torch.tensor([[7]] * len(prompts)), counts=[1] * len(prompts), cache=cache).scores[:, 0]
    for b, rows in enumerate(found):
        rows += [out[6 * b : 6 * b + 6], last[b]]
    for table in (base, *tables):
        store.cut(table, 0)
    assert sorted(store.free) == list(range(700))
    assert not any(store.holders)
    return found


@compiled
@pytest.mark.parametrize(("kind", "group", "dtype"), KINDS)
@pytest.mark.parametrize(("size", "cut", "share"), [(4, 0, None), (64, 300, together(True)), (16, 277, together(True))])
def test_paged_is_plain_bit_for_bit(kind, group, dtype, size, cut, share):
    model = fuse(decoder(window=90, windowed=(False, True, False)).to(dtype), kind, group)
    start = text(300, 3)
    prompts = [start + text(n, n) for n in (1, 40, 5, 260, 2)]
    for prompt, found in zip(prompts, paged(model, prompts, size, cut, share), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plainly(model, prompt), found, strict=True))


@pytest.mark.parametrize("share", [None, together(True)])
def test_the_plain_path_computes_the_same(share):
    model = decoder(window=30, windowed=(True, False, False), attn_cap=2.0).double()
    start = text(70, 3)
    prompts = [start + text(n, n) for n in (1, 9, 5)]
    for prompt, found in zip(prompts, paged(model, prompts, 8, 61, share), strict=True):
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(plainly(model, prompt), found, strict=True))


@torch.inference_mode()
def test_padded_passes_read_pages_too():
    model = decoder().double()
    ids = torch.tensor([text(9, 1), text(9, 2)])
    plain, store = PlainCache.like(model, batch=2), Pages.like(model, pages=20, size=4)
    cache = PagedCache(store, [Table(), Table()])
    for kept in ([9, 4], [2, 2]):
        right = model(ids, cache=plain, logits=ALL).scores
        assert torch.allclose(right, model(ids, cache=cache, logits=ALL).scores, atol=1e-12)
        plain.commit(kept)
        cache.commit(kept)
    plain.keep([1, 0, 1])
    cache.keep([1, 0, 1])
    plain.truncate([3, 5, 2])
    cache.truncate([3, 5, 2])
    more = torch.tensor([[1], [2], [3]])
    assert torch.allclose(model(more, cache=plain).scores, model(more, cache=cache).scores, atol=1e-12)


def test_a_fork_copies_only_what_it_writes_to():
    model = decoder()
    store = Pages.like(model, pages=9, size=8)
    cache = PagedCache(store, [Table()])
    model(torch.tensor([text(20, 1)]), cache=cache)
    cache.commit([20])
    twin = cache.fork([0, 0])
    assert len(store.free) == 6
    twin.reserve([1, 0])
    assert len(store.free) == 5  # of three pages, the last had to become its own
    assert [t.pages[:2] for t in twin.tables] == [cache.tables[0].pages[:2]] * 2
    with pytest.raises(TooLargeError, match="in use"):
        twin.reserve([30, 30])


def test_what_makes_no_pass_is_refused():
    model = decoder()
    cache = PagedCache(Pages.like(model, pages=4, size=8), [Table(), Table()])
    one = torch.tensor([[1], [2], [3]])
    with pytest.raises(UnsupportedError, match="paged"):
        model(one, counts=[3], cache=PlainCache.like(model))
    with pytest.raises(UnsupportedError, match="mask"):
        model(one, counts=[2, 1], cache=cache, mask=FULL)
    with pytest.raises(UsageError, match="entries"):
        model(one, counts=[3], cache=cache)
    with pytest.raises(UsageError, match="make 4"):
        model(one, counts=[2, 2], cache=cache)
    with pytest.raises(UsageError, match="power of two"):
        Pages.like(model, pages=4, size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["write", "fork", "cut", "drop"]), st.integers(0, 5), st.integers(0, 30)),
                max_size=40))
def test_pages_are_counted(moves):
    """Whatever is written, forked, cut and dropped: a page is held exactly as often as tables name it, and texts never mix."""
    store = Pages(decoder().config, pages=64, size=4)
    tables, texts = [Table()], [[]]
    k = store.k[0][0, 0, :, 0]
    stamp = 0
    for what, which, n in moves:
        b = which % len(tables)
        if what == "write" and store.wanted(tables[b], n) <= len(store.free):
            store.reserve(tables[b], n)
            for slot in store.slots(tables[b], tables[b].length, n):
                stamp += 1
                k[slot] = stamp
                texts[b].append(stamp)
            tables[b].length += n
        elif what == "fork" and len(tables) < 6:
            n = min(n, tables[b].length)
            tables.append(store.fork(tables[b], n))
            texts.append(texts[b][:n])
        elif what in ("cut", "drop"):
            n = min(n, tables[b].length) if what == "cut" else 0
            store.cut(tables[b], n)
            texts[b] = texts[b][:n]
        named = [page for table in tables for page in table.pages]
        assert store.holders == [named.count(page) for page in range(64)]
        assert sorted(store.free) == [page for page in range(64) if page not in named]
        for table, held in zip(tables, texts, strict=True):
            assert k[store.slots(table, 0, table.length)].tolist() == held
