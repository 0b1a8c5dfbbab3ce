"""Batches: a function of seed and step, every window once an epoch, the mixture met exactly."""

from collections import Counter

import numpy as np
import pytest
import torch

from lithe.errors import FormatError, UsageError
from lithe.train.batches import PATTERN, Rows, Staged


@pytest.fixture
def files(tmp_path):
    for name, first in (("a", 0), ("b", 10_000)):
        (np.arange(2000) + first).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    return {name: tmp_path / f"{name}.bin" for name in "ab"}


def rows(files, **changes):
    return Rows(**{**dict(sources=files, weights={"a": 3, "b": 1}, rows=4, length=16, seed=1), **changes})


def test_a_batch_depends_on_seed_and_step_alone(files):
    first, second = rows(files), rows(files)
    [first(step) for step in range(7)]
    assert torch.equal(first(7)["ids_BT"], second(7)["ids_BT"])
    assert not torch.equal(first(7)["ids_BT"], rows(files, seed=2)(7)["ids_BT"])


def test_targets_are_the_ids_one_place_on(files):
    batch = rows(files)(3)
    assert batch["ids_BT"].shape == (4, 16)
    assert torch.equal(batch["targets_BT"], batch["ids_BT"] + 1)  # the files count upwards


def test_an_epoch_reads_every_window_once(files):
    batches = rows(files, weights={"a": 1})
    windows = (2000 - 1) // 16 - 1
    starts = [batches.span(row)[1] for row in range(2 * windows)]
    for epoch in (starts[:windows], starts[windows:]):
        assert len(set(epoch)) == windows and len({start % 16 for start in epoch}) == 1
    assert starts[:windows] != starts[windows:]


def test_the_mixture_is_met_exactly(files):
    places = list(map(rows(files).place, range(2 * PATTERN)))
    assert Counter(name for name, _ in places) == {"a": 1500, "b": 500}
    assert [rank for name, rank in places if name == "b"] == list(range(500))


def test_documents_are_numbered_within_a_row(files):
    (np.arange(2000) % 5).astype(np.uint16).tofile(files["a"])
    batch = rows(files, weights={"a": 1}, end=0)(0)
    assert torch.equal(batch["docs_BT"], (batch["ids_BT"] == 0).cumsum(1))


def test_the_ending_has_its_own_rows(files):
    staged = Staged(stable=rows(files), ending=rows(files, rows=2, length=32))
    assert staged(0)["ids_BT"].shape == (4, 16) and staged(0, True)["ids_BT"].shape == (2, 32)


def test_errors_name_the_fault(files):
    with pytest.raises(UsageError, match="unknown: \\['c'\\]"):
        rows(files, weights={"c": 1})
    with pytest.raises(FormatError, match="too few for rows of 1500"):
        rows(files, length=1500)
