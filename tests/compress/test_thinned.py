"""Training under masks: the straight gradient, n of m to the end, fading and tightening, and shares that grow as told."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from lithe.compress.masking import of_pattern
from lithe.compress.recover import fast_sparse, progressive_gradient_flow as flow, sr_ste
from lithe.compress.run import compress
from lithe.compress.thinned import Straight, neighbours, share_of_work, thin
from lithe.contracts.compressing import linears, text
from lithe.contracts.small import small_model
from lithe.errors import UsageError


def trained(method, seed=0):
    """The small model after a run, and what the run noted."""
    found = compress(small_model(seed=seed, scale=0.3), [method], text(), seed=seed)
    return found.model, found.report["steps"][0]


def test_the_gradient_is_that_of_what_is_read_plus_the_pull():
    dice = torch.Generator().manual_seed(0)
    weight, c = (torch.randn(6, 8, generator=dice, dtype=torch.float64) for _ in range(2))
    mask = of_pattern(weight.abs(), "2:4")
    f = lambda read: (c * read.sin()).sum()
    for beta, decay in ((0.0, 0.0), (0.0, 0.3), (0.4, 0.0), (1.0, 0.1)):
        free = weight.clone().requires_grad_()
        f(Straight.apply(free, mask, beta, decay)).backward()
        read = torch.where(mask, weight, beta * weight)
        for i, j in ((0, 0), (1, 5), (5, 7), (3, 2)):
            step = torch.zeros_like(weight)
            step[i, j] = 1e-6
            numeric = (f(read + step) - f(read - step)) / 2e-6
            pull = 0.0 if mask[i, j] else decay * weight[i, j]
            assert float(free.grad[i, j]) == pytest.approx(float(numeric + pull), abs=1e-8)


def test_the_pull_makes_masks_change_less_and_pushing_makes_them_change_more():
    for seed in (0, 1, 2):
        changes = {s: trained(f"recover=sr_ste:pattern=1:4,steps=40,rate=3e-3,strength={s}", seed)[1]["mask_changes"]
                   for s in (-20, 0, 20, 100)}
        assert changes[100] < changes[20] < changes[0] < changes[-20], changes


def test_the_decoupled_pull_is_the_rate_times_it_and_touches_only_what_is_out():
    method, model = sr_ste.Method(sr_ste.Knobs(strength=3.0)), copy.deepcopy(small_model())
    method.begin(model, model, text(), 0)
    before = {name: layer.weight.detach().clone() for name, layer in method.layers.items()}
    method.update(None, 1, [torch.optim.SGD(model.parameters(), lr=0.1)])
    for name, layer in method.layers.items():
        assert torch.equal(layer.weight[layer.mask], before[name][layer.mask])
        assert torch.allclose(layer.weight[~layer.mask], 0.7 * before[name][~layer.mask])


def test_beta_falls_as_told_and_is_zero_in_the_end():
    for schedule in ("exponential", "linear"):
        method = flow.Method(flow.Knobs(schedule=schedule, steps=100, dense=0.1, final=0.2))
        betas = [method.at(step)[1] for step in range(100)]
        assert betas[:11] == [1.0] * 11 and betas[80:] == [0.0] * 20
        assert all(a >= b for a, b in pairwise(betas)) and betas[10 + 49] == pytest.approx(0.05, abs=1e-9)
        assert method.at(5)[0] == "" and method.at(50)[0] == "1:8"
    own = flow.Method(flow.Knobs(tau=2e-4, steps=5000))
    assert own.at(1500)[1] == pytest.approx(math.exp(-2e-4 * 1000))
    with pytest.raises(UsageError, match="leave no steps"):
        flow.Method(flow.Knobs(dense=0.6, final=0.4))


def test_patterns_tighten_in_equal_frames():
    assert flow.frames("1:8", "stepwise", 64) == ["7:8", "4:8", "2:8", "1:8"]
    assert flow.frames("2:4", "stepwise", 64) == ["3:4", "2:4"] and flow.frames("2:8", "stepwise", 64) == ["7:8", "4:8", "2:8"]
    assert flow.frames("1:8", "geometric", 64) == ["8:64", "4:32", "2:16", "1:8"]
    assert flow.frames("1:8", "geometric", 48) == ["2:16", "1:8"]
    method = flow.Method(flow.Knobs(schedule="stepwise", steps=100, dense=0.0, final=0.2))
    method.patterns = flow.frames("1:8", "stepwise", 64)
    assert [method.at(step)[0] for step in (0, 20, 40, 60, 99)] == ["7:8", "4:8", "2:8", "1:8", "1:8"]
    assert method.at(0)[1] == 0.0


@pytest.mark.parametrize("schedule", ["exponential", "linear", "stepwise", "geometric"])
@pytest.mark.parametrize("axis", ["input", "output"])
def test_every_schedule_ends_in_the_pattern_and_leaves_the_rest_whole(schedule, axis):
    model, note = trained(f"progressive_gradient_flow:pattern=2:8,steps=12,schedule={schedule},axis={axis},watch=true")
    for name, module in linears(model).items():
        sorted_out = module.weight if axis == "input" else module.weight.T
        most = int((sorted_out != 0).unflatten(1, (-1, 8)).sum(-1).max())
        assert most == (2 if ".mlp." in name else 8), name
    assert note["gradient_noise"] > 0 and 0.5 < note["work"] < 1


def test_the_share_grows_by_its_cube_and_ends_exactly():
    assert [fast_sparse.growth(step, 10, 20) for step in (0, 10, 15, 20, 30)] == [0, 0, 1 - 0.125, 1, 1]
    model, _ = trained("recover=fast_sparse:ratio=0.8,steps=20,every=3")
    for module in linears(model).values():
        assert int((module.weight == 0).sum()) == math.ceil(0.8 * module.weight.numel() - 1e-9)
    weight = torch.randn(10, 12, generator=torch.Generator().manual_seed(0))
    for block in (2, 4):
        mask = fast_sparse.largest(weight, 0.5, block)
        blocks = mask[: 10 // block * block].view(-1, block, 12).float().mean(1)
        assert int((~mask).sum()) == 60 and int(((blocks > 0) & (blocks < 1)).sum()) <= 1  # one may be cut by the count
    late, _ = trained("recover=fast_sparse:ratio=0.6,steps=8,every=2,late=0.2")
    share = lambda layer: float((layer.mlp.up_proj.weight == 0).float().mean())
    assert len(late.layers) == 1 or share(late.layers[0]) < 0.6 < share(late.layers[-1])


def test_what_is_out_gets_no_gradient_in_gradual_pruning_and_does_in_straight_training():
    for straight in (False, True):
        model = copy.deepcopy(small_model())
        layers = thin(model, "*", straight=straight)
        for layer in layers.values():
            layer.choose(neighbours(layer.weight, "2:4"))
        model(torch.arange(8)[None]).logits.square().sum().backward()
        some = any(bool(layer.weight.grad[~layer.mask].any()) for layer in layers.values())
        assert some == straight


def test_work_is_counted():
    assert share_of_work(1.0, 0, 10) == 1 and share_of_work(0.0, 0, 10) == pytest.approx(1 / 3)
    assert share_of_work(0.5, 5, 10) == pytest.approx((5 + 5 * 2 / 3) / 10)
