"""AdaQuant: fitted layers beat rounding on inputs not seen, the program spends bits where they count, norms mend the rest."""

import pytest
import torch

from lithe.compress import solve
from lithe.compress.allocation import Option, Problem
from lithe.compress.fitness import Fitness
from lithe.compress.groups import Group
from lithe.compress.quantize.adaquant import Fit, Knobs
from lithe.compress.rounding import grid, nearest, spread
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model
from lithe.errors import UsageError
from lithe.model import checkpoint
from lithe.model.linear import rounded_inputs


def data(tokens, seed):
    mix = torch.randn(48, 48, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.3 + torch.eye(48)
    return torch.randn(tokens, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ mix + 0.5


@pytest.mark.parametrize(("bits", "input_bits"), [(2, 0), (4, 0), (4, 4)])
def test_it_beats_rounding_on_inputs_that_it_did_not_see(bits, input_bits):
    weight = torch.randn(40, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, held_out = data(512, 2), data(4000, 3)
    lost = {}
    for steps, bias in ((0, False), (300, False), (300, True)):
        fit = Fit(weight, x, x @ weight.T, bits, 32, Knobs(steps=steps, bias=bias, input_bits=input_bits))
        fit.run(torch.Generator().manual_seed(0))
        levels, scale, shift, low, step = fit.best
        read = rounded_inputs(held_out, torch.tensor(low), torch.tensor(step), input_bits) if input_bits else held_out
        made = levels.double() * spread(scale, 48).double()
        lost[steps, bias] = float((read @ made.T + shift - held_out @ weight.T).square().mean())
    if not input_bits:
        near = nearest(weight, grid(weight, bits, 32), bits).double() * spread(grid(weight, bits, 32), 48).double()
        assert lost[0, False] == pytest.approx(float((held_out @ (near - weight).T).square().mean()))
    assert lost[300, False] < lost[0, False] and lost[300, True] < lost[0, False]


def test_fitted_input_ranges_are_stored_and_read_again(tmp_path):
    made = compress(small_model(), ["adaquant:bits=4,steps=10,input_bits=4,sites=mlp.*"], text()).model
    assert set(dict(made.config.inputs).values()) == {4} and len(made.config.inputs) == 6
    checkpoint.save(made, tmp_path / "m")
    again = checkpoint.load(tmp_path / "m", dtype=torch.float64)
    assert torch.equal(logits(made), logits(again))
    plain = compress(small_model(), ["adaquant:bits=4,steps=10,sites=mlp.*"], text()).model
    assert not torch.allclose(logits(plain), logits(made), atol=1e-3)


def test_the_program_beats_uniform_and_its_reverse_at_equal_bits():
    lost, model = {}, small_model()
    fitness = Fitness(model, text())
    for name, more in (("program", "integer_program"), ("reverse", "integer_program:reverse=true")):
        step = parse(f"rtn:bits=3.5,levels=2+3+4,count=nominal + {more}")
        made = Stage(copied(model), step, text(), 0, lambda *_: None, None, 0, 8)
        found = made.allocate()
        made.masked(found.levels)
        lost[name] = fitness(made.work)
        assert found.cost <= found.budget and found.notes["status"] == "optimal" and len(set(found.levels.values())) > 1
    assert lost["program"] < lost["reverse"]


def test_bits_are_dealt_by_the_program_unless_another_allocation_is_named():
    assert "integer_program" in parse("rtn:bits=4.2").exact and "integer_program" in parse("gptq:bytes=0.4").exact
    others = "rtn:bits=4", "rtn:bits=4.2 + uniform", "cbq:bits=3.5", "rtn:bits=4.2,plan=file", "magnitude_pruning:ratio=0.5"
    assert not any("integer_program" in parse(step).exact for step in others)
    assert parse(parse("rtn:bits=4.2").exact).exact == parse("rtn:bits=4.2").exact
    model, lost = small_model(), {}
    for name in ("rtn:bits=4.2", "rtn:bits=4.2 + uniform"):
        found = compress(model, [name], text())
        plan, lost[name] = found.allocations[0], Fitness(model, text())(found.model)
        assert plan.budget - 4 * 32 * 48 / 8 < plan.cost <= plan.budget and len(set(plan.levels.values())) > 1
    assert lost["rtn:bits=4.2"] < lost["rtn:bits=4.2 + uniform"] and plan.notes["by"] == "uniform"
    with pytest.raises(UsageError, match="allocation that measures nothing"):
        compress(model, ["rtn:bits=4.2"])
    assert compress(model, ["rtn:bits=4.2 + uniform"]).allocations[0].notes == {"by": "uniform"}


def test_what_the_sum_leaves_is_spent_on_what_loses_no_more():
    groups = [Group(name=name, unit="bits", layer=0, sites=(name,), units=1, weights=8) for name in "abc"]
    options = {name: [Option(level=bits, cost=bits) for bits in (2, 3, 4, 8)] for name in "abc"}
    errors = {"a": [1.0, 0.5, 0.5, 0.5], "b": [0.0, 0.0, 0.0, 0.0], "c": [9.0, 0.0, 1.0, 0.0]}
    for budget, wanted in ((8, [3, 2, 3]), (24, [8, 8, 8])):
        assert list(solve.best_sum(Problem(groups=groups, options=options, budget=budget), errors).values()) == wanted
    problem = Problem(groups=groups, options=options, budget=13)
    found = solve.best_sum(problem, errors)
    at = {name: [option.level for option in options[name]].index(bits) for name, bits in found.items()}
    assert sum(errors[name][i] for name, i in at.items()) == 0.5
    steps = [options[name][j].cost - options[name][i].cost for name, i in at.items() for j in range(i + 1, 4)
             if errors[name][j] <= errors[name][i]]
    assert min(steps) > 13 - solve.spent(problem, at)


def test_norms_mend_a_packed_model():
    model = copied(small_model()).float()
    fitness = Fitness(model, text())
    rounded = compress(model, ["rtn:bits=3"], text()).model
    mended = compress(model, ["rtn:bits=3", "norm_tuning:steps=40,rate=3e-3"], text()).model
    assert fitness(mended) < 0.95 * fitness(rounded)
    assert all(torch.equal(a, b) for a, b in zip(rounded.buffers(), mended.buffers(), strict=True))
