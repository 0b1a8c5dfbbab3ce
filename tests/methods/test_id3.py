"""ID3: who joins when, with which first step, and that the numbers add up."""

import pytest
import torch

from lithe.registry import parse
from lithe.train.loss import next_token
from lithe.tune.rack import Rack
from lithe.tune.targets import linears
from tests.tune.entry_runs import feed, model, resumed_equals_whole, run


def counts(parts):
    return sum(len(part.idx) for part in parts.values())


@pytest.mark.parametrize(("extra", "steps"), [("", 7), (",every=3", 7), (",turns=3", 8), (",every=2,turns=2", 9), ("", 1)])
def test_exactly_the_budget_joins_and_nobody_leaves(extra, steps):
    seen, before = [], {}

    def tell(step, parts, optimizers):
        for site, part in parts.items():
            assert torch.isin(before.get(site, part.idx[:0]), part.idx).all() and (part.idx.diff() > 0).all()
            before[site] = part.idx.clone()
        seen.append(counts(parts))

    adapter, _ = run(f"id3:density=0.03{extra}", steps, tell=tell, base=model())
    budget = adapter.method.budget
    assert budget % steps or steps == 1  # an uneven share
    assert seen[-1] == budget
    if not extra:
        assert seen == [budget // steps * s + min(s, budget % steps) for s in range(1, steps + 1)]


def test_entries_join_linearly_so_half_the_updates_are_made():
    ages = []

    def tell(step, parts, optimizers):
        ages[:] = [optimizers[0].state[part.values]["age"].sum().item() for part in parts.values()]

    adapter, at = run("id3:density=0.3", 40, tell=tell, base=model(), micro=None)
    half = adapter.method.budget * 41 / 2
    assert abs(sum(ages) - half) < 0.02 * half
    whole = 8 * sum(n * k for n, k in (part.shape for part in adapter.parts.values()))
    assert at.held["method"] == whole  # a gradient of everything: the method's price


@pytest.mark.parametrize(("turns", "part"), [(1, 1.0), (7, 0.3)])
def test_taking_turns_holds_less(turns, part):
    adapter, at = run(f"id3:turns={turns}", 14, base=model())
    assert at.held["method"] <= part * 8 * sum(n * k for n, k in (p.shape for p in adapter.parts.values()))


@pytest.mark.parametrize("power", [0, 1])
def test_one_step_takes_the_entries_of_the_largest_score(power):
    """Micro-batches are summed before they are compared; a new entry's first step is Adam's."""
    base, plain = model(), model()
    adapter, _ = run(f"id3:power={power},density=0.02,eps=0.01", 1, base=base)
    total = sum(int((batch["targets_BT"] >= 0).sum()) for batch in feed(50)(0, False))
    for batch in feed(50)(0, False):
        (next_token(plain, batch)[0] / total).backward()
    grads = {site: layer.weight.grad.flatten() for site, layer in linears(plain).items()}
    size = {site: layer.weight.detach().flatten().abs() + 0.01 for site, layer in linears(plain).items()}
    scores = {site: g.abs() / size[site] ** power for site, g in grads.items()}
    least = torch.cat(list(scores.values())).topk(adapter.method.budget).values[-1]
    for site, part in adapter.parts.items():
        assert torch.equal(part.idx.long(), (scores[site].float() >= least.float()).nonzero().flatten())
        assert torch.allclose(part.values, -0.01 * grads[site][part.idx.long()].sign(), rtol=1e-3)


def test_it_resumes_bit_for_bit(tmp_path):
    assert resumed_equals_whole("id3:density=0.03,every=2", (1, 4), tmp_path, steps=6)


def test_trained_it_is_an_adapter_like_any_other(tmp_path):
    base = model()
    with torch.no_grad():
        ids = torch.arange(20).view(2, 10)
        plain = base(ids).scores
    run("id3:density=0.03", 5, base=base, lr=0.1)
    with torch.no_grad():
        rack = Rack.of(base)
        beside = base(ids).scores
        rack.merge("a")
        assert (base(ids).scores - beside).abs().max() < 1e-9 and (beside - plain).abs().max() > 1e-3
        rack.unmerge()
        rack.save("a", tmp_path / "a")
        rack.remove("a")
        assert torch.equal(base(ids).scores, plain)
        rack.load(tmp_path / "a")
        assert torch.equal(base(ids).scores, beside)


def test_nothing_trains_before_the_first_step():
    found = parse("id3")
    assert found.entry.module.Method(found.knobs, model()).size(model()) == 0
