"""SpIEL: what is dropped, what grows, what grown entries begin with, and what is never held."""

from itertools import pairwise

import pytest
import torch

from lithe.errors import UsageError
from lithe.model.sparse import Sparse
from lithe.registry import parse
from lithe.train import memory
from lithe.train.entries import EntryAdamW
from lithe.train.loss import next_token
from lithe.tune.rack import Rack
from tests.tune.entry_runs import feed, model, resumed_equals_whole, run

SPEC = "spiel:density=0.05,every=4,look=2,rate=0.5"


def alone(spec, shape=(4, 5), places=(1, 5, 9, 13)):
    """The method with one part and an optimizer, to be led by hand."""
    found = parse(spec)
    method = found.entry.module.Method(found.knobs, None)
    part = Sparse(torch.tensor(places), torch.zeros(len(places), dtype=torch.float64), shape)
    method.begin({"x": part}, 100)
    return method, part, EntryAdamW([part.values], lr=0.1)


def step(method, part, optimizer, number, gradients, by=1.0):
    """One step, whose micro-batches have these whole gradients."""
    part.values.grad = sum(gradients).flatten()[part.idx.long()] / by
    for gradient in gradients:
        if part.watch is not None:
            part.watch(gradient)
    method.divide(by)
    method.observe({"x": part}, number)
    optimizer.step()
    method.update({"x": part}, number, [optimizer])


def gradients(count, seed=0, shape=(4, 5)):
    dice = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=dice, dtype=torch.float64) for _ in range(count)]


def test_grown_entries_begin_with_the_moments_that_were_seen():
    """Two micro-batches a step, sums divided by 7: right after growing, Adam's corrected moments are means over the steps."""
    method, part, optimizer = alone("spiel:every=10,look=3")
    seen = [gradients(2, seed=i) for i in range(3)]
    for number, micro in enumerate(seen, 1):
        step(method, part, optimizer, number, micro, by=7.0)
    whole = torch.stack([(one + other).flatten() / 7 for one, other in seen])
    candidates = seen[0][0].flatten().abs().topk(4).indices  # the first look's
    assert set(part.idx.tolist()) == set(candidates.tolist())  # the first selection replaces everything
    state, beta1, beta2 = optimizer.state[part.values], 0.9, 0.95
    new = [i for i, place in enumerate(part.idx.tolist()) if place not in (1, 5, 9, 13)]
    assert new and all(state["age"][i] == 3 and part.values[i] == 0 for i in new)
    for i in new:
        mean, square = whole[:, part.idx[i]].mean(), whole[:, part.idx[i]].square().mean()
        assert abs(state["exp_avg"][i] / (1 - beta1**3) - mean) < 1e-12
        assert abs(state["exp_avg_sq"][i] / (1 - beta2**3) - square) < 1e-12


def test_what_would_be_dropped_and_grown_at_once_stays():
    method, part, optimizer = alone("spiel:every=10,look=2")
    loud = torch.zeros(4, 5, dtype=torch.float64)
    loud.view(-1)[torch.tensor([1, 5, 2, 3])] = torch.tensor([9.0, 8, 7, 6], dtype=torch.float64)  # 1 and 5 are held
    for number in (1, 2):
        step(method, part, optimizer, number, [loud])
    assert part.idx.tolist() == [1, 2, 3, 5]
    assert optimizer.state[part.values]["age"].tolist() == [2, 2, 2, 2] and part.values[0] != 0 and part.values[1] == 0


def test_the_least_changed_go_and_the_share_fades():
    method, part, optimizer = alone("spiel:every=4,look=1,rate=0.5")
    for number in range(1, 5):
        step(method, part, optimizer, number, gradients(1, seed=number))
    with torch.no_grad():
        part.values.copy_(torch.tensor([0.3, -0.01, 0.02, -5.0]))
    before = part.idx.tolist()
    loud = gradients(1, seed=9)[0]
    loud.view(-1)[part.idx.long()] = 0
    part.values.grad = torch.zeros(4, dtype=torch.float64)
    part.watch(loud)
    method.observe({"x": part}, 5)
    method.update({"x": part}, 5, [optimizer])
    gone = set(before) - set(part.idx.tolist())
    assert gone == {before[1]}  # floor(4 * 0.5 * 0.95) of them
    assert loud.flatten().abs().argmax().item() in part.idx.tolist()


@pytest.mark.parametrize("grow", ["ag", "ma"])
def test_as_many_entries_sorted_after_every_step(grow):
    seen, looks = [], []

    def tell(step, parts, optimizers):
        for part in parts.values():
            assert len(part.idx) == len(part.values) and (part.idx.diff() > 0).all()
            looks.append(part.watch is not None)
        seen.append({site: part.idx.clone() for site, part in parts.items()})

    adapter, at = run(f"{SPEC},grow={grow}", tell=tell, base=model())
    assert adapter.size == adapter.method.size(model())
    moved = [any(not torch.equal(now[s], before[s]) for s in now) for before, now in pairwise(seen)]
    assert [i + 2 for i, did in enumerate(moved) if did] == [2, 6, 10]  # steps 2, 6, 10; at the very end no more
    assert any(looks) == (grow == "ag")  # covers need no whole gradient, ever
    adam = 3 * at.held["trainable"]  # two moments and the age
    covers = 8 * sum(sum(part.shape) for part in adapter.parts.values())
    assert at.held["optimizer"] == (adam if grow == "ag" else covers) and ("method" in at.held) == (grow == "ag")


@pytest.mark.parametrize("grow", ["ag", "ma"])
def test_it_resumes_bit_for_bit_within_a_selection(tmp_path, grow):
    assert resumed_equals_whole(f"{SPEC},grow={grow}", (1, 5, 7), tmp_path)


def test_it_keeps_no_more_than_low_rank_pairs_do():
    """For the gradient: the inputs of a site, which a pair of the same size keeps as well. A pass back holds one site's."""
    kept = {}
    for spec in ("spiel:rank=2", "lora:rank=2"):
        base = model()
        rack = Rack.of(base)
        rack.train(rack.make(spec, name="a").name)
        batch = feed()(0, False)[0]
        kept[spec] = memory.kept(lambda base=base, batch=batch: next_token(base, batch)[0], base), rack.adapters["a"].size
    (ours, size), (theirs, pairs) = kept.values()
    assert size == pairs and ours <= theirs


def test_what_cannot_be_is_refused():
    for spec in ("spiel:look=20,every=20", "spiel:rank=4096"):
        with pytest.raises(UsageError):
            Rack.of(model()).make(spec)
