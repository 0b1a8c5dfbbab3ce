"""CoFiTune: what general text needs is found, and does not move; and why it is the update that must be scaled."""

import pytest
import torch

from lithe.contracts.adapter import fresh, logits, loss
from lithe.contracts.small import small_corpus
from lithe.errors import UsageError
from lithe.train.importance import importance
from lithe.train.sample import sample
from lithe.tune.rack import Rack

TEXT = f"corpus={small_corpus()},rows=4,length=32"
UP, DOWN = (f"layers.0.mlp.{name}_proj" for name in ("up", "down"))


def dice():
    return torch.Generator().manual_seed(0)


def batches(model):
    return sample(model, str(small_corpus()), rows=4, length=32)


def test_without_noise_nothing_is_important_and_with_it_all_lies_between_0_and_1():
    model = fresh().requires_grad_(True)
    plain = logits(model)
    for units in importance(model, batches(model), [0, 1], dropout=0.0, dice=dice()).values():
        assert not any(each.any() for each in units.each())
    found = importance(model, batches(model), [0, 1], dropout=0.003, dice=dice())
    for units in found.values():
        assert [len(each) for each in units.each()] == [64, 32, 4]
        assert all(each.min() >= 0 and each.max() < 1 and each.std() > 0.05 for each in units.each())
    assert torch.equal(logits(model), plain) and all(w.grad is None and w.requires_grad for w in model.parameters())


def test_a_channel_that_nothing_reads_is_like_its_kin_and_a_loud_one_stands_out():
    model = fresh()
    model.layers[0].mlp.down_proj.weight.data[:, 7] *= 30
    model.layers[0].mlp.down_proj.weight.data[:, 20:30] = 0
    inner_F = importance(model, batches(model), [0], dropout=0.05, dice=dice())[0].inner_F
    assert inner_F.argmax() == 7 and inner_F[20:30].std() < 1e-9


def trained(where, kept, steps=5, decay=0.1):
    """The adapter's up matrix after some steps; kept says what is left of each row's update."""
    model = fresh()
    rack = Rack.of(model)
    adapter = rack.make(f"cofitune:where={where}", name="a")
    adapter.method.kept = {UP: kept}
    rack.train("a")
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2, weight_decay=decay, eps=1e-12)
    for step in range(1, steps + 1):
        loss(model).backward()
        adapter.method.observe(adapter.parts, step)
        optimizer.step()
        adapter.method.update(adapter.parts, step, [optimizer])
        optimizer.zero_grad()
    return adapter.parts[UP].matrix.detach(), adapter.parts[DOWN].matrix.detach()


def test_important_rows_stay_and_unimportant_ones_train_as_ever():
    kept = torch.ones(64, 1, dtype=torch.float64)
    plain = trained("update", kept)
    assert all(map(torch.equal, plain, trained("grad", kept)))
    kept[10:20] = 0
    up, _ = trained("update", kept)
    assert not up[10:20].any() and up[:10].abs().min() > 0
    one, _ = trained("update", kept, steps=1)
    assert torch.equal(one[20:], trained("update", torch.ones(64, 1, dtype=torch.float64), steps=1)[0][20:])


def test_adam_takes_a_factor_on_the_gradient_back_and_not_one_on_the_update():
    kept = torch.full((64, 1), 0.1, dtype=torch.float64)
    full = trained("update", torch.ones_like(kept), steps=1)[0]
    assert torch.allclose(trained("update", kept, steps=1)[0], 0.1 * full, rtol=1e-9, atol=0)
    assert torch.allclose(trained("grad", kept, steps=1)[0], full, rtol=1e-4, atol=0)  # the authors' form: no effect


def test_the_range_is_that_of_the_paper_and_rows_follow_what_is_found():
    model = fresh()
    rack = Rack.of(model)
    a = rack.make(f"cofitune:{TEXT}", name="a")
    assert set(a.parts) == {UP, DOWN} and set(a.method.kept) == {UP, DOWN}
    assert all(kept.min() > 0 and kept.max() <= 1 for kept in a.method.kept.values())
    everything = f"cofitune:first=0,last=1,targets=q_proj+k_proj+up_proj,mask=q_proj+k_proj+up_proj,{TEXT}"
    b = rack.make(everything, name="b")
    q, k = (b.method.kept[f"layers.1.self_attn.{name}_proj"] for name in "qk")
    assert len(b.parts) == 6 and torch.equal(k.view(2, 8)[:, 0], q.view(2, 2, 8)[..., 0].amin(1))
    with pytest.raises(UsageError, match="no heads or channels"):
        rack.make(f"cofitune:targets=o_proj,mask=o_proj,{TEXT}", name="c")
    with pytest.raises(UsageError, match="holds none"):
        rack.make("cofitune:first=0.5,last=0.5", name="d")
