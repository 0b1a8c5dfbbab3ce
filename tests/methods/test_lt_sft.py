"""LT-SFT: whole training, the way back, the few that changed most, and changes that add up."""

import torch

from lithe.ops.largest import largest
from lithe.train.loss import next_token
from lithe.tune.rack import Rack
from lithe.tune.targets import linears
from tests.tune.entry_runs import feed, model, resumed_equals_whole, run, values

IDS = torch.arange(20).view(2, 10)


def held(parts):
    return sum(len(part.values) for part in parts.values())


def test_the_largest_are_found_exactly_over_all_tensors():
    dice = torch.Generator().manual_seed(0)
    scores = [torch.rand(7, 30, generator=dice), torch.rand(400, generator=dice), torch.full((5,), 0.5)]
    scores[1][:50] = 0.5  # ties, of which the first are taken
    scores[0][0] = -1.0  # never, these 30
    every = torch.cat([score.flatten() for score in scores])
    for count in (1, 17, 250, 335, 10**4):
        found, least = largest([lambda s=s: s for s in scores], count)
        flat = torch.cat([at + start for at, start in zip(found, (0, 210, 610), strict=True)])
        order = every.argsort(descending=True, stable=True)[: min(count, 585)]
        assert torch.equal(flat, order.sort().values) and (least == every[order[-1]] or count > 585)
    found, least = largest([lambda s=s: s for s in scores], 40, smallest=True)
    wanted = torch.where(every >= 0, every, 9.0).argsort(stable=True)[:40]
    assert sum(map(len, found)) == 40 and least == every[wanted[-1]]


def test_first_it_is_full_tuning_then_the_base_with_the_few_that_changed_most():
    """The oracle trains the layers themselves by torch's AdamW: the same entries have changed most."""
    told, base, oracle = {}, model(), model()
    with torch.no_grad():
        plain = base(IDS).scores

    def tell(step, parts, optimizers):
        if step == 5:
            with torch.no_grad():
                told.update(few={site: part.idx.clone() for site, part in parts.items()}, scores=base(IDS).scores)
            assert not any(part.values.any() for part in parts.values()) and not optimizers[0].state

    adapter, at = run("lt_sft:density=0.02", 10, base=base, tell=tell)
    weights = [layer.weight for layer in linears(oracle).values()]
    before = [weight.detach().clone() for weight in weights]
    optimizer, batches = torch.optim.AdamW(weights, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0), feed(50)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.01 * (0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.tensor(step / 10 * torch.pi)).item()))
        total = 0
        for batch in batches(step, False):
            summed, tokens = next_token(oracle, batch)
            summed.backward()
            total += int(tokens)
        for weight in weights:
            weight.grad /= total
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        oracle.zero_grad()
    few, _ = largest([lambda w=w, b=b: (w - b).abs() for w, b in zip(weights, before, strict=True)], adapter.method.budget)
    agree = sum(torch.isin(mine.long(), theirs).sum().item() for mine, theirs in zip(told["few"].values(), few, strict=True))
    assert agree >= 0.99 * adapter.method.budget
    assert torch.equal(told["scores"], plain)  # bit for bit the base again
    assert held(adapter.parts) == adapter.method.budget
    assert at.held["trainable"] == 8 * adapter.method.total  # that all were trained once is not hidden


def test_rounds_add_their_part_and_start_from_the_base():
    sizes = []
    adapter, _ = run("lt_sft:density=0.02,rounds=2", 12, base=model(), tell=lambda step, parts, _: sizes.append(held(parts)))
    half, budget, total = adapter.method.budget // 2, adapter.method.budget, adapter.method.total
    assert sizes == [total] * 2 + [half] * 3 + [total] * 3 + [budget] * 4


def test_a_pull_keeps_changes_small():
    sums = [sum(part.values.abs().sum() for part in run(spec, 10, base=model())[0].parts.values())
            for spec in ("lt_sft:density=0.02", "lt_sft:density=0.02,pull_few=100")]
    assert sums[1] < 0.9 * sums[0]


def test_it_resumes_bit_for_bit_in_either_stage(tmp_path):
    assert resumed_equals_whole("lt_sft:density=0.02,rounds=2", (1, 4, 7, 10), tmp_path)


def test_changes_add_up_in_any_order_and_come_off_bit_for_bit():
    base = model()
    rack = Rack.of(base)
    with torch.no_grad():
        plain = base(IDS).scores
    run("lt_sft:density=0.02", 6, rack=rack, name="task")
    rack.use(None)
    run("lt_sft:density=0.03", 6, rack=rack, name="language", lr=0.02)
    with torch.no_grad():
        found = []
        for wish in ({"task": 1.0, "language": 1.0}, {"language": 1.0, "task": 1.0}):
            rack.use(wish)
            found.append(base(IDS).scores)
        assert (found[0] - found[1]).abs().max() < 1e-12 and (found[0] - plain).abs().max() > 1e-3
        rack.use(None)
        assert torch.equal(base(IDS).scores, plain)


def test_sources_of_a_batch_are_applied_to_their_own_rows():
    """Many sources: the task's gradient of a batch whose rows are in two languages is that of each language's rows alone."""
    base = model()
    rack = Rack.of(base)
    for name in ("one", "two", "task"):
        part = rack.make("spiel:density=0.05", name=name, seed=len(name) + ord(name[0]))
        with torch.no_grad():
            for weight in part.parameters():
                weight.add_(0.1)
    rack.train("task")
    mixes = [rack.number({name: 1.0, "task": 1.0}) for name in ("one", "two")]
    own = list(rack.adapters["task"].parameters())
    slope = lambda ids, mix: torch.autograd.grad(base(ids, adapters_B=mix, logits="all").scores.square().sum(), own)
    both = slope(IDS, mixes)
    for whole, first, second in zip(both, slope(IDS[:1], mixes[:1]), slope(IDS[1:], mixes[1:]), strict=True):
        assert torch.allclose(whole, first + second, atol=1e-9)


def test_what_has_hardly_changed_is_left_out():
    adapter, _ = run("lt_sft:density=0.02", 10, base=model())
    part = next(part for part in adapter.parts.values() if len(part.values) > 3)
    with torch.no_grad():
        part.values[1] = 1e-9
    before, kept = len(part.values), part.idx[1].item()
    adapter.method.finish(adapter.parts)
    assert len(part.values) == before - 1 and kept not in part.idx.tolist() and values(adapter)
