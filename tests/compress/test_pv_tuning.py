"""PV-Tuning: codes that move a little and well, stored kinds that weigh what they say, and what tuning mends."""

from functools import cache

import pytest
import torch

from lithe.compress.fitness import Fitness
from lithe.compress.hessian import inverse_root
from lithe.compress.quantize.pv_tuning import Knobs as Start, assigned, fitted, vectors
from lithe.compress.recover.pv_tuning import Knobs, Method
from lithe.compress.recovery import recover
from lithe.compress.run import compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.compress.tuned import Grid, Vectors, of_layer
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import decided
from lithe.model import checkpoint
from lithe.model.config import Config
from lithe.model.narrow import NarrowLinear
from lithe.model.packing import layers


@cache
def dense():
    """Wide enough for a book to be smaller than what it explains."""
    return decided(Config(vocab=32, width=96, layers=1, heads=4, kv_heads=2, ffn=192, context=64), 0, 3.0).float()


def begun(step="pv_tuning:bits=1,rounds=5"):
    return compress(copied(dense()), [step], text()).model


def tuned(model, more):
    knobs = parse(f"recover=pv_tuning:{more}")
    return recover(copied(model), dense(), knobs, text(), seed=0, kept=None, number=0)[0]


def test_a_book_finds_the_vectors_that_there_are():
    dice = torch.Generator().manual_seed(0)
    true = torch.randn(16, 4, generator=dice, dtype=torch.float64)
    weight = true[torch.randint(16, (32, 12), generator=dice)].flatten(1)
    book = fitted(weight, torch.ones(48, dtype=torch.float64), 4, Start(rounds=5), dice)
    codes = assigned(weight, torch.ones(32, dtype=torch.float64), book, torch.eye(48, dtype=torch.float64))
    assert torch.allclose(book[codes].flatten(1), weight, atol=1e-12)


def test_feedback_loses_less_of_the_outputs():
    dice = torch.Generator().manual_seed(1)
    weight = torch.randn(512, 48, generator=dice, dtype=torch.float64)
    mix = torch.randn(48, 48, generator=dice, dtype=torch.float64) * 0.3 + torch.eye(48)
    moment, ones = mix @ mix.T, torch.ones(512, dtype=torch.float64)
    book = fitted(weight, moment.diagonal(), 8, Start(), dice)
    lost = []
    for root in (torch.eye(48, dtype=torch.float64), inverse_root(moment, 0.01)):
        off = book[assigned(weight, ones, book, root)].flatten(1) - weight
        lost.append(float((off @ moment * off).sum()))
    assert vectors(weight, 8).shape == (512, 6, 8) and lost[1] < 0.9 * lost[0]


def test_a_step_moves_few_codes_each_to_its_best_and_stays_in_trust():
    found = of_layer(next(iter(layers(begun()).values())))
    assert isinstance(found, Vectors)
    before, knobs = found.codes.clone(), Knobs(most=0.1, code_rate=1.0, trust=0.0)
    now = found.weight.detach().clone()
    gradient = torch.randn(now.shape, generator=torch.Generator().manual_seed(0))
    for trust in (0.05, 0.0):
        found.codes.copy_(before)
        found.square_NK = None
        (found(torch.eye(found.in_features)).T * gradient).sum().backward()
        assert torch.allclose(found.made.grad, gradient)
        moved = found.choose(Knobs(most=0.1, code_rate=1.0, trust=trust), 1, 1.0)
        way = (found.weight.detach() - now).norm() / now.norm()
        assert 1 <= moved <= max(1, int(0.1 * before.numel())) and moved == int((found.codes != before).sum())
        assert not trust or way <= trust or moved == 1
    assert float(((found.weight.detach() - now) * gradient).sum()) < 0  # the linearised loss falls
    wanted = now - knobs.code_rate * now.square().mean().sqrt() * gradient.sign()
    for row, column in (found.codes != before).nonzero().tolist():
        piece = wanted[row, column * 8 : column * 8 + 8] / found.scale_N[row]
        assert int(found.codes[row, column]) == int((found.book_CI - piece).square().sum(1).argmin())


@pytest.mark.parametrize("step", ["pv_tuning:bits=1,rounds=5", "gptq:bits=2,group=32"])
def test_tuning_mends_and_codes_help(step):
    model = begun(step)
    fitness = Fitness(dense(), text())
    lost = {name: fitness(tuned(model, f"steps=40,rate=3e-3,{more}")) for name, more in (
        ("pv", "code_rate=0.5,most=0.05,trust=0.05"), ("continuous", "most=0"))}
    assert lost["pv"] < lost["continuous"] < fitness(model)


def test_what_is_tuned_is_packed_again_and_loads_bit_for_bit(tmp_path):
    made = tuned(begun(), "steps=3")
    assert all(isinstance(layer, NarrowLinear) and layer.kind == "vector8" for layer in layers(made).values())
    checkpoint.save(made, tmp_path / "m")
    again = checkpoint.load(tmp_path / "m")
    assert torch.equal(logits(made), logits(again))
    for layer in layers(again).values():
        n, k = layer.weight.shape
        assert layer.data.numel() == n * k // 8 + 2 * n + 2 * 256 * 8  # codes, scales, book


def test_a_tuned_grid_is_what_was_packed():
    packed = begun("rtn:bits=3")
    layer = next(iter(layers(packed).values()))
    found = of_layer(layer)
    assert isinstance(found, Grid) and torch.equal(found.weight, layer.weight)
    assert torch.equal(found.packed().weight, layer.weight) and found.packed().kind == "int3"


def test_memory_of_a_stopped_run():
    method = Method(Knobs(decay=0.5))
    method.begin(begun(), dense(), text(), 0)
    one = next(iter(method.tuned.values()))
    one.square_NK, one.wish_NK = torch.ones(one.out_features, one.in_features), torch.zeros(one.out_features, one.in_features)
    state = {name: value.clone() for name, value in method.state().items()}
    one.codes.zero_()
    method.restore(state)
    assert all(torch.equal(value, state[name]) for name, value in method.state().items())
