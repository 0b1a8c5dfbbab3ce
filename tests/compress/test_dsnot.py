"""DSnoT: rows keep their count, expected errors fall, and so does the layer's error where inputs have a mean."""

import pytest
import torch

from lithe.compress import calibrate
from lithe.compress.masking import of_pattern, of_share
from lithe.compress.prune.dsnot import Knobs, Rows
from lithe.train.stats import Inputs


def layer(mean=1.0, n=48, k=64, tokens=4000, seed=0):
    """A matrix, and inputs with a mean of their own, correlated."""
    dice = torch.Generator().manual_seed(seed)
    mix = torch.eye(k) + 0.2 * torch.randn(k, k, generator=dice)
    x = torch.randn(tokens, k, generator=dice) @ mix + mean * torch.randn(k, generator=dice)
    inputs = Inputs(0, *(torch.zeros(k, dtype=torch.float64) for _ in range(4)), torch.zeros(k, k, dtype=torch.float64))
    inputs.add(x)
    return torch.randn(n, k, generator=dice, dtype=torch.float64), x.double(), inputs


def mended(weight, inputs, m=0, **knobs):
    score = weight.abs() * inputs.norm_K
    mask = of_pattern(score, f"{m // 2}:{m}") if m else of_share(score, 0.5)
    text = calibrate.of_ids(list(range(64)), length=16)
    rows = Rows(weight, mask, score, inputs, text, Knobs(**knobs), m)
    for _ in range(50):
        if not rows.cycle():
            break
    return mask, rows


@pytest.mark.parametrize("guard", ["none", "hessian"])
@pytest.mark.parametrize("m", [0, 4])
def test_counts_stay_and_expected_errors_fall(guard, m):
    weight, _, inputs = layer()
    mask, rows = mended(weight, inputs, m, guard=guard)
    shape = (len(mask), -1, m) if m else mask.shape
    assert torch.equal(rows.mask_NK.view(shape).sum(-1), mask.view(shape).sum(-1))
    assert not torch.equal(rows.mask_NK, mask)
    error = lambda mask: torch.where(mask, 0.0, rows.part_NK).sum(1)
    assert torch.allclose(rows.error_N, error(rows.mask_NK))
    assert error(rows.mask_NK).abs().sum() < error(mask).abs().sum()
    if not m:  # among neighbours the one that goes is the least, whatever its sign, so single rows may lose
        assert (error(rows.mask_NK).abs() <= error(mask).abs() + 1e-9).all()


def test_where_inputs_have_a_mean_the_output_comes_nearer_and_the_guard_never_makes_it_worse():
    for mean in (2.0, 0.0):
        weight, x, inputs = layer(mean)
        lost = {}
        for guard in ("none", "hessian"):
            mask, rows = mended(weight, inputs, guard=guard)
            wanda, ours = (((weight * ~kept) @ x.T).square().sum(1) for kept in (mask, rows.mask_NK))
            lost[guard] = float(ours.sum() / wanda.sum())
            if guard == "hessian":
                assert (ours <= wanda * (1 + 1e-9)).all()
        assert lost["hessian"] < 1
        assert (lost["none"] < 1) == bool(mean)  # without a mean the expected error tells nothing


def test_no_cycles_is_the_mask_itself():
    weight, _, inputs = layer()
    score = weight.abs() * inputs.norm_K
    mask = of_share(score, 0.5)
    rows = Rows(weight, mask, score, inputs, None, Knobs(threshold=1e9), 0)
    assert not rows.cycle() and torch.equal(rows.mask_NK, mask)
