"""Týr: exact errors of groups, rounds, the final fit, and a search that keeps its budget."""

from dataclasses import replace

import pytest
import torch

from lithe.compress import calibrate, solve
from lithe.compress.allocate.tyr import around
from lithe.compress.allocation import Option
from lithe.compress.hessian import damped, inverse
from lithe.compress.prune.tyr import errors, pruned
from lithe.compress.run import Stage
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model


def stage(spec, model=None):
    return Stage(copied(model or small_model()), parse(spec), text(), 0, lambda *_: None, None, 0, 8)


@pytest.fixture(scope="module")
def layer():
    """Weights [N, K] and second moments [K, K] of inputs that depend on each other."""
    dice = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=dice, dtype=torch.float64)
    x = torch.randn(400, 24, generator=dice, dtype=torch.float64) @ mix
    return torch.randn(10, 24, generator=dice, dtype=torch.float64), x.T @ x / 400


def off(weight, new, moment):
    return 0.5 * float((((weight - new) @ moment) * (weight - new)).sum())


@pytest.mark.parametrize("units", [24, 6])
def test_the_error_of_a_group_is_what_the_best_correction_leaves(layer, units):
    weight, moment = layer
    h = damped(moment, 0.01)
    found = errors(weight, inverse(moment, 0.01), units, torch.ones(units, dtype=torch.bool))
    for unit in (0, units - 1):
        kept = torch.tensor([k for k in range(24) if k // (24 // units) != unit])
        best = torch.zeros_like(weight)
        best[:, kept] = torch.linalg.solve(h[kept][:, kept], (weight @ h)[:, kept].T).T
        assert float(found[unit]) == pytest.approx(off(weight, best, h), rel=1e-6)


def test_more_rounds_are_no_worse_and_both_beat_a_score_with_the_same_fit(layer):
    weight, moment = layer
    h = damped(moment, 0.01)
    loss = {}
    for rounds in (1, 3, 12):
        kept, new = pruned(weight, moment, moment, 24, 8, rounds, 0.01)
        assert len(kept) == 8 and not new[:, [k for k in range(24) if k not in kept]].any()
        loss[rounds] = off(weight, new, h)
    score = (weight.abs() * moment.diagonal().sqrt()).sum(0).argsort(descending=True)[:8].sort().values
    fitted = torch.zeros_like(weight)
    fitted[:, score] = torch.linalg.solve(h[score][:, score], (weight @ h)[:, score].T).T
    assert loss[12] <= loss[3] <= loss[1] and loss[12] < off(weight, fitted, h)


def test_with_the_dense_models_outputs_as_goal_a_later_block_comes_nearer_to_them():
    lost = {}
    for target in ("own", "dense"):
        made = stage(f"prune=tyr:ratio=0.5,target={target},unit=channel")
        made.masked(made.allocate().levels)
        site = "layers.1.mlp.down_proj"
        source = made.source(1, {})
        want = source.rows(site, 512, dense=True) @ small_model().get_submodule(site).weight.T
        have = source.rows(site, 512) @ made.work.get_submodule(site).weight.T
        lost[target] = float((want - have).detach().square().sum())
    assert lost["dense"] < lost["own"]


def test_levels_lie_at_whole_steps_around_one():
    options = [Option(level=k * 8, cost=k) for k in range(9)]
    assert [o.level for o in around(options, 32, 64, 0.25, 5)] == [0, 16, 32, 48, 64]
    assert [o.level for o in around(options, 56, 64, 0.125, 9)] == [24, 32, 40, 48, 56, 64]
    assert [o.level for o in around(options, 32, 64, 0.001, 3)] == [24, 32, 40]


def test_every_plan_it_measures_costs_the_budget_and_the_last_beats_uniform():
    search = "iterations=2,step=0.125,generations=4,children=6,survivors=2+1,tokens=128+512"
    made = stage(f"tyr:ratio=0.4,unit=channel,{search}", small_model(layers=4))
    costs, loss = [], made.problem.find_loss

    class Watched:
        store = loss.store

        def __call__(self, plan, tokens=0):
            costs.append(made.problem.cost(plan))
            return loss(plan, tokens)

    made.problem = replace(made.problem, find_loss=Watched())
    found = made.allocate()
    assert len({round(cost, 3) for cost in costs}) == 1 and costs[0] == pytest.approx(found.cost)
    levels = {name: sorted({level, uniform}) for (name, level), uniform in
              zip(found.levels.items(), solve.uniform(made.problem).values(), strict=True)}
    made.problem.store(levels)
    assert loss(found.levels) <= loss(solve.uniform(made.problem)) and found.notes["evaluations"] > 8


def test_a_store_carries_the_mean_of_levels_weighted_by_what_they_keep():
    made = stage("prune=tyr:ratio=0.5,unit=channel")
    measured, name = made.problem.find_loss, "layers.0.mlp"
    levels = {group.name: [16, 48] for group in made.groups}
    measured.store(levels, "expected")
    second = {carry: None for carry in ("expected", "dense", "middle")}
    weights = [measured.changes[name, level].weights["layers.0.mlp.down_proj"] for level in (16, 48)]
    group = made.groups[0]
    mean = measured._mean(made.work, group, [16, 48]).weights["layers.0.mlp.down_proj"]
    assert torch.allclose(mean, 0.25 * weights[0] + 0.75 * weights[1])
    for carry in second:
        measured.store(levels, carry)
        second[carry] = measured.changes["layers.1.mlp", 48].weights["layers.1.mlp.down_proj"]
    assert not torch.equal(second["expected"], second["dense"]) and not torch.equal(second["expected"], second["middle"])
    _, inputs = list(calibrate.blocks(made.work, text(), ["moments"]))[1]
    _, plain = pruned(made.work.layers[1].mlp.down_proj.weight.double(), inputs["mlp.down_proj"].second_moment_KK,
                      inputs["mlp.down_proj"].second_moment_KK, 64, 48, 16, 0.01)
    assert torch.allclose(second["dense"], plain)
