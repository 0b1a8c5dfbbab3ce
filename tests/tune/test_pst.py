"""PST: how many entries are zero, what the scores' gradient is, and that what is exported is what was trained."""

import pytest
import torch
from torch import nn

from lithe.contracts.adapter import fresh, logits, loss, slopes, stir, tuned
from lithe.model.adapted import Below
from lithe.model.masked import Masked, kept
from lithe.tune.rack import Rack
from lithe.tune.targets import linears


def test_exactly_so_many_entries_are_zero_ties_and_all():
    dice = torch.Generator().manual_seed(0)
    for score in (torch.randn(7, 9, generator=dice), torch.zeros(7, 9), torch.randint(0, 3, (7, 9), generator=dice).float()):
        for sparsity in (0.0, 0.1, 0.5, 0.99):
            mask = kept(score, sparsity)
            assert int((~mask).sum()) == int(sparsity * 63)
            assert mask.all() or score[~mask].max() <= score[mask].min()


def part_of(sparsity, n=5, k=6):
    dice = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=dice, dtype=torch.float64)
    tensors = {"u": draw(n, 2), "v": draw(2, k), "a": draw(n, 3), "b": draw(3, k), "rows": draw(n), "columns": draw(k)}
    layer = nn.Linear(k, n, bias=False).double().requires_grad_(False)
    return Masked(tensors, sparsity=sparsity), layer, draw(4, k)


def test_the_scores_get_the_masks_own_gradient():
    """By hand: G = g^T x is the gradient of M * W', so that of M, and of the score, is G * W'."""
    part, layer, x = part_of(0.5)
    y = part.after(x, layer(x), Below(layer))
    y.square().sum().backward()
    moved = (layer.weight + part.u @ part.v).detach()
    score = moved.abs() + (part.a @ part.b + part.rows[:, None] + part.columns).detach()
    mask = kept(score, 0.5)
    assert torch.allclose(y, x @ (mask * moved).T) and int((~mask).sum()) == 15
    whole = 2 * y.detach().T @ x
    of_mask = whole * moved
    assert torch.allclose(part.rows.grad, of_mask.sum(1)) and torch.allclose(part.columns.grad, of_mask.sum(0))
    assert torch.allclose(part.a.grad, of_mask @ part.b.detach().T)
    of_moved = whole * mask + of_mask * moved.sign()  # the score's |W'| moves with W' too
    assert torch.allclose(part.u.grad, of_moved @ part.v.detach().T)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_run_ends_at_the_sparsity_and_its_export_is_the_module(sparsity):
    model = fresh()
    rack = Rack.of(model)
    adapter = rack.make(f"pst:sparsity={sparsity},rank=2,score_rank=2", name="a")
    tuned(rack, adapter, 10)
    assert {part.sparsity for part in adapter.parts.values()} == {sparsity}
    beside = logits(model)
    rack.merge("a")
    for layer in linears(model).values():
        assert int((layer.weight == 0).sum()) == int(sparsity * layer.weight.numel())
    assert (logits(model) - beside).abs().max() <= 1e-9


def test_its_gradient_is_the_slope_at_a_held_mask_and_two_of_them_stack_and_merge():
    model = fresh()
    rack = Rack.of(model)
    a, b = (rack.make("pst:rank=2,score_rank=2", name=name, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    for adapter, sparsity in ((a, 0.5), (b, 0.3)):
        stir(adapter, 3)
        for part in adapter.parts.values():
            part.sparsity = sparsity
    slopes(rack, a)
    rack.use({"a": 0.7, "b": 1.0})
    beside = logits(model)
    rack.merge({"a": 0.7, "b": 1.0})
    assert (logits(model) - beside).abs().max() <= 1e-9


def test_sparsity_rests_rises_by_a_cube_and_rests():
    method = Rack.of(fresh()).make("pst:sparsity=0.8,warm=0.2,last=0.3", name="a").method
    method.begin({}, 100)
    found = [method.at(step) for step in range(101)]
    assert found[:21] == [0.0] * 21 and found[70:] == [0.8] * 31 and found == sorted(found)
    assert found[45] == pytest.approx(0.8 * (1 - 0.5**3))


def test_a_saved_run_goes_on_at_its_sparsity():
    a, b = (Rack.of(fresh()).make("pst", name="a") for _ in range(2))
    for adapter in (a, b):
        adapter.method.begin(adapter.parts, 20)
    a.method.update(a.parts, 9, [])
    b.method.restore(a.method.state())
    assert {p.sparsity for p in b.parts.values()} == {a.method.at(9)} != {0.0}


def test_learnt_scores_end_lower_than_sizes_alone():
    """With scores learnt, by size alone while the weight moves, and pruned by size and not tuned."""
    found = {}
    for name, more in {"learnt": "score_rank=2", "size": "low=0,sides=0"}.items():
        model = fresh()
        rack = Rack.of(model)
        adapter = rack.make(f"pst:sparsity=0.7,rank=2,{more}", name="a")
        tuned(rack, adapter, 60)
        found[name] = loss(model, rows=4).item()
    model = fresh()
    for layer in linears(model).values():
        layer.weight.data *= kept(layer.weight.data.abs(), 0.7)
    found["pruned"] = loss(model, rows=4).item()
    assert found["learnt"] < found["size"] < found["pruned"]
