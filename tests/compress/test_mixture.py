"""Mixtures: one budget over several ways and over halves that go, as a program, a search and a folder see it."""

import itertools
import json
import random

import pytest
import torch

from lithe.compress import api, solve
from lithe.compress.allocation import Allocation
from lithe.compress.evolution import fits, mutated
from lithe.compress.fitness import Fitness
from lithe.compress.mixture import parse
from lithe.compress.run import Stage, compress
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_folder, small_model
from lithe.errors import UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.linear import Factored, PackedLinear, SparseLinear

WAYS = "gptq:bits=4,levels=3+4+8 | magnitude_pruning:levels=0.8 | svd:levels=2 | magnitude_pruning:unit=half + uniform"


def made(mixture, model=None):
    return Stage(copied(model or small_model()), parse(mixture), text(), 0, lambda *_: None, None, 0, 4)


def test_each_site_has_the_levels_of_all_ways_by_what_a_folder_takes():
    stage = made(WAYS)
    options = stage.options["layers.0.self_attn.q_proj"]
    assert [o.level for o in options] == [0, "gptq=3", "svd=2", "gptq=4", "magnitude_pruning=0.8", "gptq=8", None]
    cost = {o.level: o.cost for o in options}
    assert list(cost.values()) == sorted(cost.values()) and cost[0] == 0 and cost[None] == 4096
    assert cost["gptq=3"] == 32 * (32 * 3 / 8 + 2) and cost["svd=2"] == 4 * 2 * (32 + 32)
    assert stage.options["layers.1.mlp"][0].level == 0 and stage.problem.bound["layers.1.mlp"] == tuple(
        f"layers.1.mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj"))
    weights = sum(module.weight.numel() for name, module in small_model().named_modules() if name.endswith("_proj"))
    assert stage.problem.budget == 4 * weights / 8
    assert "integer_program" in parse(WAYS.removesuffix(" + uniform")).exact  # where none is named
    again = parse(stage.step.exact)
    assert again.exact == stage.step.exact and again.groups(stage.work) == stage.groups


def test_the_program_drops_a_half_whole_or_not_at_all():
    stage = made("gptq:bits=3,levels=3+4 | magnitude_pruning:unit=half + integer_program")
    problem = stage.problem
    dice = torch.Generator().manual_seed(1)
    errors = {name: torch.rand(len(found), generator=dice).sort(descending=True).values.tolist()
              for name, found in problem.options.items()}
    for half, sites in problem.bound.items():
        errors[half] = [0.1 if half == "layers.1.mlp" else 5.0, 0.0]
        for site in sites:
            errors[site][0] = 0.0
    plan = solve.best_sum(problem, errors)
    assert problem.whole(plan) and plan["layers.1.mlp"] == 0 and [plan[half] for half in problem.bound].count(0) == 1
    best = _by_hand(problem, errors)
    assert problem.notes["objective"] == pytest.approx(best, rel=1e-9)
    assert not problem.whole(plan | {"layers.0.mlp": 0})
    problem.budget = 1.1 * problem.standing().least
    assert 0 not in solve.uniform(problem).values()  # what knows nothing of losses drops no half
    standing = problem.standing()
    kept = solve.best_sum(standing, {name: list(range(len(found), 0, -1)) for name, found in standing.options.items()})
    assert not standing.bound and {1, "gptq=3", "gptq=4"} == set(kept.values())


def _by_hand(problem, errors):
    """The least summed error over all choices of halves, the sites of the others by the program without halves."""
    best = float("inf")
    for gone in itertools.product((False, True), repeat=len(problem.bound)):
        out = {n for away, (half, sites) in zip(gone, problem.bound.items(), strict=True) if away for n in (half, *sites)}
        rest = problem.standing()
        rest.options = {name: found for name, found in rest.options.items() if name not in out}
        rest.groups = [group for group in rest.groups if group.name in rest.options and group.unit != "half"]
        rest.options = {group.name: rest.options[group.name] for group in rest.groups}
        if not rest.groups or rest.least > rest.budget:
            continue
        rest.notes = {}
        own = {name: errors[name][-len(found):] for name, found in rest.options.items()}
        solve.best_sum(rest, own)
        best = min(best, rest.notes["objective"] + sum(errors[half][0] for half in out & problem.bound.keys()))
    return best


def test_mutations_keep_halves_whole_and_within_the_budget():
    problem, dice = made(WAYS).problem, random.Random(3)
    plan = {name: [o.level for o in problem.options[name]].index(level) for name, level in solve.uniform(problem).items()}
    dropped = 0
    for _ in range(60):
        plan = mutated(problem, plan, 2, dice) or plan
        assert fits(problem, plan) and problem.whole(solve.plan(problem, plan))
        dropped = max(dropped, sum(not plan[half] for half in problem.bound))
    assert dropped


def test_measuring_comes_back_from_a_half_that_went():
    stage = made(WAYS)
    loss, rich = stage.problem.loss, {name: found[-1].level for name, found in stage.options.items()}
    gone = rich | dict.fromkeys(("layers.0.mlp", *stage.problem.bound["layers.0.mlp"]), 0)
    few = rich | {"layers.0.mlp.up_proj": "gptq=3"}
    seen = [loss(plan) for plan in (rich, gone, few, gone, rich, few)]
    assert seen[1] == seen[3] > seen[2] == seen[5] > seen[0] == seen[4] == pytest.approx(0, abs=1e-9)


def test_what_lies_before_a_change_is_not_run_again_and_changes_no_bit():
    """Plans in any order, on some of the text and on all of it, are judged as by whole passes."""
    stage = made(WAYS)
    measured = stage.problem.find_loss
    rich = {name: found[-1].level for name, found in stage.options.items()}
    sites = [name for name, found in stage.options.items() if found[-1].level is None]
    plans = [rich, *(rich | {sites[i]: "gptq=3"} for i in (-1, -2, 0, -1, 3, -1)),
             rich | {sites[0]: "gptq=3", sites[-1]: "gptq=4"}]
    passes, whole = [], Fitness(stage.work, stage.calibration)
    for plan, tokens in itertools.product(plans, (32, 0)):
        found = measured(plan, tokens)
        passes.append(measured.fitness.before[0])
        assert found == whole(measured.model, tokens)
    assert max(passes) == len(stage.work.layers) - 1


def test_one_plan_is_stored_as_it_says_and_loads_bit_for_bit(tmp_path):
    model = checkpoint.load(small_folder(layers=3), dtype=torch.float32)
    model.folder = None
    plan = compress(model, [WAYS], text(), dry_run=True, item=4).allocations[0]
    sites = {"layers.0.self_attn.q_proj": "svd=2", "layers.0.mlp.up_proj": "magnitude_pruning=0.8"}
    halves = {name: 0 for name in plan.levels if name.startswith("layers.1")}
    halves |= {name: 0 for name in plan.levels if name.startswith("layers.2.mlp")}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.json() | {"levels": plan.levels | sites | halves}))
    asked = WAYS.replace("bits=4", f"bits=4,plan={file}")
    found = api.compress(model, [asked], calibration=text(), out=tmp_path / "m")
    kinds = {type(found.model.get_submodule(name)) for name in ("layers.0.self_attn.q_proj", "layers.0.mlp.up_proj",
                                                               "layers.1.self_attn.k_proj")}
    assert {Factored, SparseLinear} < kinds and issubclass((kinds - {Factored, SparseLinear}).pop(), PackedLinear)
    assert found.model.config.layers == 2 and found.model.layers[1].mlp is None
    assert {site for site, level in (plan.levels | sites | halves).items() if level == "svd=2"} == {
        site.replace("layers.1", "layers.2") for site, _ in found.model.config.ranks}
    assert torch.equal(logits(compress(model, [asked], text(), item=4).model), logits(found.model))
    assert 0 <= found.report["bytes"] - 4 * _others(found.model) - found.allocations[0].cost < 4000  # the file's header
    taken = Allocation.of(found.model.receipts[-1]["allocation"])
    assert taken.unit == "site" and taken.levels == plan.levels | sites | halves
    file.write_text(json.dumps(plan.json() | {"levels": plan.levels | {"layers.1.mlp": 0}}))
    with pytest.raises(UsageError, match="with all of its sites or with none"):
        compress(model, [asked], text(), item=4)


def _others(model):
    """Values of all that no site holds: embeddings, norms, the output matrix."""
    return sum(weight.numel() for name, weight in model.named_parameters() if "_proj" not in name)


def test_a_mixture_is_no_worse_than_its_ways_by_their_sum():
    dense, lost = small_model(), {}
    for name, step in (("bits", "rtn:bits=6.5,levels=4+8"), ("both", "rtn:bits=6.5,levels=4+8 | svd:levels=2+4")):
        step += " | magnitude_pruning:unit=half + integer_program" if name == "both" else " + integer_program"
        found = compress(dense, [step], text(), item=4)
        lost[name] = found.allocations[0].notes["objective"], Fitness(dense, text())(found.model)
        assert found.allocations[0].cost <= found.allocations[0].budget
    assert lost["both"][0] <= lost["bits"][0] + 1e-9


@pytest.mark.parametrize(("step", "told"), [
    ("gptq:bits=3 | svd:bits=4", "twice"), ("gptq | svd + uniform", "must say once how much"),
    ("gptq:bits=3 | uniform", "no way of its own"),
    ("gptq:bits=3 + uniform | svd + integer_program", "two allocations"), ("gptq:bits=3 | awq", "several sites at once"),
    ("gptq:bits=3 | cfsp", "cannot be a way"), ("gptq:bits=3 | svd:rank=4", "levels"),
    ("gptq:bits=3,sites=mlp.* | magnitude_pruning:unit=half + uniform", "no way says what else")])
def test_what_cannot_be_a_mixture_is_told(step, told):
    with pytest.raises((UsageError, UnsupportedError), match=told):
        compress(small_model(), [step], text(), item=4)
