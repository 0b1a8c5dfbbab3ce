"""AdamR: weights are drawn back to where they began by the paper's rule, resumed runs included."""

import torch
from torch import nn

from lithe.train.optim import Optimizer, build


def stepped(pull: float, steps: int, *, halfway: bool = False) -> tuple[nn.Linear, list]:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3), torch.randn(8, 5)
    optimizers = build(model, Optimizer(lr=1e-2, weight_decay=0.0, pull=pull))
    for step in range(steps):
        if halfway and step == steps // 2:  # as a checkpoint does: the state out, and into a new optimizer over moved weights
            held = optimizers[0].state_dict()
            optimizers = build(model, Optimizer(lr=1e-2, weight_decay=0.0, pull=pull))
            optimizers[0].load_state_dict(held)
        (model(x) - 1).square().mean().backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
    return model, optimizers


def test_a_step_is_the_rule():
    plain, optimizers = stepped(0.0, 1)
    pulled, _ = stepped(0.02, 1)
    start, _ = stepped(0.0, 0)
    squares = [optimizers[0].state[w]["exp_avg_sq"] / (1 - 0.95) for w in plain.parameters()]
    mean = sum(s.sum() for s in squares) / sum(s.numel() for s in squares)
    share = 1e-2 * 0.02 / mean.sqrt()
    assert 1e-4 < share < 0.5
    for a, b, c in zip(pulled.parameters(), plain.parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, b - share * (b - c), rtol=1e-6)


def test_more_pull_means_a_smaller_difference_and_resuming_changes_nothing():
    start, _ = stepped(0.0, 0)
    far = [sum((a - b).norm() for a, b in zip(stepped(pull, 30)[0].parameters(), start.parameters(), strict=True)).item()
           for pull in (0.0, 0.3, 3.0)]
    assert far[0] > 1.05 * far[1] > 1.1 * far[2] > 0
    for a, b in zip(stepped(0.3, 10)[0].parameters(), stepped(0.3, 10, halfway=True)[0].parameters(), strict=True):
        assert torch.equal(a, b)
