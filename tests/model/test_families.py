"""Logits parity with transformers on small random models, in one pass, through the cache, in batches, and after saving."""

import pytest
import torch
import transformers

from lithe.model.cache import PlainCache
from lithe.model.checkpoint import load, save
from lithe.model.decoder import ALL
from tests.model import families_zoo as zoo

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=list(zoo.CASES))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = zoo.make(request.param)
    theirs.save_pretrained(folder)
    return theirs, load(folder)


def ids(rows: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, 96, (batch, rows), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference(theirs, ids_BT: torch.Tensor) -> torch.Tensor:
    return theirs(ids_BT).logits


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@torch.no_grad()
def test_one_pass(pair):
    theirs, ours = pair
    x = ids(256)
    expected = reference(theirs, x)
    assert expected.std() > 0.05
    same(ours(x, logits=ALL).logits, expected)


@torch.no_grad()
def test_cache(pair):
    theirs, ours = pair
    x = ids(48)
    cache = PlainCache.like(ours, capacity=64)
    parts = []
    for piece in (x[:, :30], *x[:, 30:].split(1, dim=1)):
        parts.append(ours(piece, cache=cache, logits=ALL).logits)
        cache.commit([piece.shape[1]])
    same(torch.cat(parts, dim=1), reference(theirs, x))


@torch.no_grad()
def test_unequal_lengths(pair):
    theirs, ours = pair
    x, lengths = ids(40, batch=3), [40, 7, 23]
    cache = PlainCache.like(ours, batch=3, capacity=64)
    first = ours(x, cache=cache, rows=lengths).logits
    cache.commit(lengths)
    step = ours(ids(1, batch=3), cache=cache).logits
    for b, n in enumerate(lengths):
        same(first[b], reference(theirs, x[b : b + 1, :n])[0, -1:])
        same(step[b], reference(theirs, torch.cat((x[b : b + 1, :n], ids(1, batch=3)[b : b + 1]), dim=1))[0, -1:])


@torch.no_grad()
def test_saved_for_transformers(pair, tmp_path):
    theirs, ours = pair
    save(ours, tmp_path / "saved")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True,
                                                                    dtype=torch.float32)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(theirs)
    x = ids(64)
    same(reference(again.eval(), x), reference(theirs, x))
    back = load(tmp_path / "saved")
    assert back.config == ours.config
    assert torch.equal(back(x, logits=ALL).logits, ours(x, logits=ALL).logits)
