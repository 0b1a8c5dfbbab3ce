"""AdaQuant: fitted layers beat rounding on inputs not seen, the program spends bits where they count, norms mend the rest."""

import pytest
import torch

from lithe.compress.fitness import Fitness
from lithe.compress.quantize.adaquant import Fit, Knobs
from lithe.compress.rounding import grid, nearest, spread
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model


def data(tokens, seed):
    mix = torch.randn(48, 48, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.3 + torch.eye(48)
    return torch.randn(tokens, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ mix + 0.5


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_beats_rounding_on_inputs_that_it_did_not_see(bits):
    weight = torch.randn(40, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, held_out = data(256, 2), data(4000, 3)
    fit = Fit(weight, x.T @ x / len(x), x.mean(0), bits, 32)
    lost = {}
    for name, knobs in (("rtn", Knobs(steps=0)), ("fitted", Knobs(steps=150)), ("biased", Knobs(steps=150, bias=True))):
        levels, scale, bias = fit.run(knobs)
        made = levels.double() * spread(scale, 48).double()
        lost[name] = float((held_out @ (made - weight).T + bias * knobs.bias).square().mean())
    near = nearest(weight, grid(weight, bits, 32), bits).double() * spread(grid(weight, bits, 32), 48).double()
    assert lost["rtn"] == pytest.approx(float((held_out @ (near - weight).T).square().mean()))
    assert lost["fitted"] < lost["rtn"] and lost["biased"] < lost["rtn"]


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


def test_norms_mend_a_packed_model():
    model = copied(small_model()).float()
    fitness = Fitness(model, text())
    rounded = compress(model, ["rtn:bits=3"], text()).model
    mended = compress(model, ["rtn:bits=3", "norm_tuning:steps=40,rate=3e-3"], text()).model
    assert fitness(mended) < 0.95 * fitness(rounded)
    assert all(torch.equal(a, b) for a, b in zip(rounded.buffers(), mended.buffers(), strict=True))
