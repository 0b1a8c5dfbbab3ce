"""ECoFLaP: slopes without a gradient, and water filling that spends the budget exactly."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lithe.compress import calibrate
from lithe.compress.allocate.ecoflap import dealt
from lithe.compress.fitness import nll
from lithe.compress.measured import slope
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model


def stage(spec, model=None):
    return Stage(copied(model or small_model()), parse(spec), text(), 0, lambda *_: None, None, 0, 8)


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 50)), min_size=1, max_size=12), st.floats(0.01, 1),
       st.floats(0, 0.3))
@settings(max_examples=300, deadline=None)
def test_what_is_dealt_is_the_budget(parts, share, margin):
    sizes = {i: size for i, (size, _) in enumerate(parts)}
    scores = {i: score for i, (_, score) in enumerate(parts)}
    budget, floor = share * sum(sizes.values()), max(0.0, share - margin)
    kept = dealt(sizes, scores, budget, floor)
    assert sum(kept.values()) == pytest.approx(budget)
    assert all(floor * sizes[i] - 1e-9 <= kept[i] <= sizes[i] + 1e-9 for i in sizes)


def test_slopes_agree_with_gradients_and_leave_the_weights_bit_for_bit():
    model = copied(small_model(layers=4))
    made = stage("wanda:ratio=0.5 + ecoflap", model)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    found = [slope(model, text(), 0, [group], 1e-4, 16) for group in made.groups]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    exact = []
    for group in made.groups:
        source = made.source(group.layer, {})
        exact.append(float(source.squared_gradients(group.sites[0]).sum().sqrt()))
    rank = lambda values: torch.tensor(values).argsort().argsort().double()
    assert float(torch.corrcoef(torch.stack((rank(found), rank(exact))))[0, 1]) > 0.6
    assert found[0] == slope(model, text(), 0, made.groups[:1], 1e-4, 16)  # a seed is a direction


def test_steeper_blocks_keep_more_within_the_margin_and_equal_scores_are_uniform():
    made = stage("wanda:ratio=0.6 + ecoflap:samples=8", small_model(layers=4))
    levels, found = made.allocate().levels, made.allocate().notes["slopes"]
    steep, flat = max(found, key=found.get), min(found, key=found.get)
    site = "self_attn.q_proj"
    assert levels[f"layers.{steep}.{site}"] < levels[f"layers.{flat}.{site}"] <= 0.7 + 1e-9
    assert sum(levels[g.name] * g.weights for g in made.groups) / sum(g.weights for g in made.groups) >= 0.6 - 1e-9
    even = compress(small_model(), ["wanda:ratio=0.6 + ecoflap:even=true"], text(), dry_run=True).allocations[0].levels
    assert set(even.values()) == {0.6}


def test_it_deals_channels_too():
    made = stage("wanda_sp:ratio=0.4,unit=width + ecoflap:samples=4")
    assert made.allocate().cost <= made.problem.budget


def test_first_order_slopes_are_those_of_the_loss():
    model = copied(small_model())
    site = "layers.0.mlp.up_proj"
    found = calibrate.slopes(model, text().batches, [site])[site]
    weight = model.get_parameter(f"{site}.weight")
    assert not weight.requires_grad or weight.grad is None
    step = 1e-5
    with torch.no_grad():
        weight[3, 5] += step
        up = nll(model, text())
        weight[3, 5] -= 2 * step
        down = nll(model, text())
    assert float(found[3, 5]) == pytest.approx((up - down) / (2 * step), rel=1e-3)


def test_taylor_scores_are_what_the_loss_would_change():
    made = stage("llm_pruner:ratio=0.5,taylor=vector")
    scores = made.problem.unit_scores["layers.0.mlp"]
    plain, step = small_model(), 1e-5
    for unit in (0, 40):
        losses = []
        for sign in (1, -1):
            model = copied(plain)
            mlp = model.layers[0].mlp
            with torch.no_grad():
                for weight in (mlp.gate_proj.weight[unit], mlp.up_proj.weight[unit], mlp.down_proj.weight[:, unit]):
                    weight.mul_(1 + sign * step)
            losses.append(nll(model, text()))
        per = sum(_terms(made, unit))
        assert per == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-3, abs=1e-7)
        assert float(scores[unit]) >= abs(per) - 1e-9  # matrices are summed by size


def _terms(made, unit):
    for site in made.groups[0].sites:
        source = made.source(0, {})
        terms = source.weight(site) * source.mean_gradients(site)
        yield float(terms[:, unit].sum() if site.endswith("down_proj") else terms[unit].sum())
