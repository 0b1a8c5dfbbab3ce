"""The k largest of each row, the quick way and the plain one."""

import pytest
import torch

from lithe.ops.rank import FEW, _folded, top

dice = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("rows, vocab, k", [(FEW, 4096, 8), (FEW + 1, 4099, 8), (20, 300, 64), (3, 100, 8), (20, 70, 65)])
def test_the_scores_are_the_k_largest_falling(rows, vocab, k):
    for scores in (torch.randn(rows, vocab, generator=dice), torch.randint(5, (rows, vocab), generator=dice).float(),
                   torch.full((rows, vocab), float("-inf")).index_fill(1, torch.tensor([3, 50]), 1.0)):
        ids = torch.from_numpy(top(scores, k))
        assert torch.equal(scores.gather(1, ids), scores.topk(k, dim=-1).values)
        assert all(len(set(row)) == k for row in ids.tolist())


def test_of_equals_the_quick_way_takes_the_lowest_id_and_it_is_left_where_a_score_is_no_number():
    scores = torch.randint(3, (FEW, 512), generator=dice).float()
    assert (_folded(scores.numpy(), 4) == scores.sort(dim=-1, descending=True, stable=True).indices[:, :4].numpy()).all()
    scores[1] = float("nan")
    assert _folded(scores.numpy(), 4) is None and top(scores, 4).shape == (FEW, 4)
