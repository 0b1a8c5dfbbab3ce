"""The k largest of each row, the quick way and the plain one."""

import pytest
import torch

from lithe.ops.rank import _folded, top

dice = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("rows, vocab, k", [(1, 4096, 8), (9, 4099, 8), (3, 300, 64), (3, 100, 8), (2, 70, 65)])
def test_the_ids_are_those_of_a_stable_sort(rows, vocab, k):
    for scores in (torch.randn(rows, vocab, generator=dice), torch.randint(5, (rows, vocab), generator=dice).float(),
                   torch.full((rows, vocab), float("-inf")).index_fill(1, torch.tensor([3, 50]), 1.0)):
        assert (top(scores, k) == scores.sort(dim=-1, descending=True, stable=True).indices[:, :k].numpy()).all()


def test_the_quick_way_is_taken_and_left_where_a_score_is_no_number():
    scores = torch.randn(2, 512, generator=dice)
    assert _folded(scores.numpy(), 4) is not None
    scores[1] = float("nan")
    assert _folded(scores.numpy(), 4) is None and top(scores, 4).shape == (2, 4)
