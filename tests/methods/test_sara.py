"""SaRA: which entries train, which of them settle half way, and what the nuclear norm does."""

import math

import torch

from lithe.model.config import Config
from lithe.registry import parse
from lithe.tune.rack import Rack
from lithe.tune.targets import linears
from tests.tune.entry_runs import model, resumed_equals_whole, run

WIDE = Config(vocab=64, width=80, layers=1, heads=2, kv_heads=2, ffn=96, context=32, tied=True)
SPEC = "sara:density=0.1,slow=0"


def test_the_smallest_weights_train():
    base = model()
    rack = Rack.of(base)
    adapter = rack.make(SPEC, name="a")
    every = torch.cat([layer.weight.detach().abs().flatten() for layer in linears(base).values()])
    taken = torch.cat([layer.weight.detach().abs().flatten()[adapter.parts[site].idx.long()]
                       for site, layer in linears(base).items()])
    assert len(taken) == round(0.1 * len(every)) and taken.max() <= every.sort().values[len(taken)]
    assert abs(adapter.method.threshold - taken.max().item()) < 1e-8


def test_half_way_the_grown_settle_and_the_rest_begins_anew():
    settled, base = {}, model()
    weights = {site: layer.weight.detach().flatten() for site, layer in linears(base).items()}

    def tell(step, parts, optimizers):
        limit = guide.threshold * (1 + 1e-6)
        if step == 5:
            for site, part in parts.items():
                now = weights[site][part.idx.long()] + part.values
                assert (now.abs() <= limit).all()
                assert ((weights[site][part.settled_idx.long()] + part.settled).abs() > limit).all()
                settled[site] = part.settled.clone(), part.settled_idx.clone()
            assert not optimizers[0].state and 0 < sum(len(held) for held, _ in settled.values()) < total
        if step > 5:
            assert all(torch.equal(part.settled, settled[site][0]) for site, part in parts.items())
        count = sum(len(part.values) for part in parts.values())
        state = optimizers[0].state.values()
        assert step == 5 or sum(one["exp_avg"].numel() + one["exp_avg_sq"].numel() for one in state) == 2 * count

    rack = Rack.of(base)
    first = rack.make(SPEC, name="first")
    guide, total = first.method, first.size
    rack.remove("first")
    adapter, _ = run(SPEC, 10, rack=rack, tell=tell, lr=0.002)
    with torch.no_grad():
        before = base(torch.arange(9)[None]).scores
        adapter.method.finish(adapter.parts)
        assert adapter.size == total and (base(torch.arange(9)[None]).scores - before).abs().max() < 1e-12
    for site, part in adapter.parts.items():
        assert (part.idx.diff() > 0).all()
        assert torch.equal(part.values.detach()[torch.isin(part.idx, settled[site][1])], settled[site][0])


def test_the_rate_falls_with_the_threshold():
    rates = {}
    for slow in (0, 350):
        found = run(f"sara:slow={slow}", 2, base=model(), tell=lambda step, parts, optimizers, slow=slow:
                    rates.setdefault(slow, optimizers[0].param_groups[0]["peak"]))[0]
        assert math.isclose(rates[slow], 0.01 * math.exp(-slow * found.method.threshold))


def penalised(of):
    found = parse(f"sara:nuclear=0.1,of={of},density=0.3")
    base = model(WIDE)
    method = found.entry.module.Method(found.knobs, base)
    parts = method.build(base, torch.Generator())
    return base, method, parts


def test_the_norms_gradient_is_torchs():
    for of in ("change", "weight"):
        base, method, parts = penalised(of)
        with torch.no_grad():
            for part in parts.values():
                part.values.add_(torch.randn(part.values.shape, generator=torch.Generator().manual_seed(1)))
        found = method.penalty(parts)
        found.backward()
        (site,) = [site for site, part in parts.items() if part.values.grad is not None]
        part = parts[site]
        values = part.values.detach().clone().requires_grad_()
        own = values + (linears(base)[site].weight.detach().flatten()[part.idx.long()] if of == "weight" else 0)
        dense = torch.zeros(part.shape, dtype=torch.float64).view(-1).index_put((part.idx.long(),), own).view(part.shape)
        norm = 0.1 * torch.linalg.matrix_norm(dense, "nuc")
        norm.backward()
        assert torch.allclose(found, norm, rtol=1e-6) and torch.allclose(part.values.grad, values.grad, atol=1e-6)


def test_without_a_change_the_norm_pulls_nowhere_and_small_matrices_are_left_alone():
    _, method, parts = penalised("change")
    assert method.penalty(parts).item() == 0
    adapter = Rack.of(model()).make("sara:density=0.3,nuclear=100")  # sides of 16 to 48
    with torch.no_grad():
        for part in adapter.parts.values():
            part.values.add_(1.0)
    assert adapter.method.penalty(adapter.parts).item() == 0


def test_the_norm_keeps_changes_of_low_rank_small():
    norms = []
    for weight in (0, 1.0):
        adapter, _ = run(f"sara:density=0.3,slow=0,turn=1,nuclear={weight}", 12, base=model(WIDE), lr=0.01)
        norms.append(sum(torch.linalg.svdvals(part.matrix()).sum().item() for part in adapter.parts.values()))
    assert norms[1] < 0.9 * norms[0]


def test_it_resumes_bit_for_bit_in_either_half(tmp_path):
    assert resumed_equals_whole(SPEC, (2, 7), tmp_path, steps=9, lr=0.002)
