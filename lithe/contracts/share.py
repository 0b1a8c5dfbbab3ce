"""Who reads keys together: everybody is in one group, and what comes out does not depend on it."""

from __future__ import annotations

import random

import torch

from lithe.contracts.small import small_model
from lithe.model.paged import PagedCache, Pages, Table
from lithe.registry import Entry

SIZE = 4


def check_verbs(entry: Entry) -> None:
    """`group` puts every sequence into exactly one group, whatever their pages; asked again it says the same."""
    dice = random.Random(0)
    for knobs in ({}, {name: field.default for name, field in entry.module.Knobs.__dataclass_fields__.items()}):
        method = entry.module.Method(entry.knobs(**knobs))
        for _ in range(60):
            pages = [walk(dice) for _ in range(dice.randint(1, 9))]
            groups = method.group(pages, SIZE)
            assert sorted(b for group in groups for b in group) == list(range(len(pages))), "not everybody is in one group"
            assert all(groups), "a group is empty"
            assert method.group(pages, SIZE) == groups, "asked again, it groups otherwise"


def check_same_tokens(entry: Entry) -> None:
    """Logits of sequences on a tree of shared prefixes of three levels are those that each gives alone."""
    model, method = small_model(), entry.module.Method(entry.knobs())
    store = Pages.like(model, pages=120, size=SIZE)
    dice = random.Random(1)
    texts = [[dice.randrange(32) for _ in range(n)] for n in (24, 8, 4, 3, 1)]
    ways = [(0, 1, 2, 3), (0, 1, 2, 4), (0, 1, 4), (0, 3), (3,), (0, 1, 2, 3)]
    tables: dict[tuple[int, ...], Table] = {(): Table()}
    for way in ways:
        for depth in range(1, len(way) + 1):
            if way[:depth] not in tables:
                tables[way[:depth]] = table = store.fork(tables[way[: depth - 1]])
                read(model, PagedCache(store, [table]), [texts[way[depth - 1]]])
    whole, alone = ([store.fork(tables[way]) for way in ways] for _ in range(2))
    rows = [[1 + i] * (1 + i % 3) for i in range(len(ways))]
    together = read(model, PagedCache(store, whole, method.group), rows)
    for table, row, found in zip(alone, rows, together, strict=True):
        right = read(model, PagedCache(store, [table]), [row])[0]
        assert torch.allclose(found, right, atol=1e-9), "a sequence's logits depend on who is read with it"


@torch.inference_mode()
def read(model, cache: PagedCache, rows: list[list[int]]) -> list[torch.Tensor]:
    """Run rows behind each sequence, keep them, and return the logits after the last of each."""
    counts = list(map(len, rows))
    out = model(torch.tensor([token for row in rows for token in row])[:, None], counts=counts, cache=cache).scores
    cache.commit(counts)
    return list(out[:, 0])


def walk(dice: random.Random) -> list[int]:
    """Pages of a text, of a small tree, so that beginnings are often the same."""
    return [depth * 2 + dice.randint(0, 1) if depth < 8 else 100 + dice.randrange(1000) for depth in range(dice.randint(0, 20))]
