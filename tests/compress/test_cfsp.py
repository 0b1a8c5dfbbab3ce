"""CFSP: the two norms of its score, its shares, its ranks."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lithe.compress import calibrate
from lithe.compress.allocate.cfsp import MARGIN, shares
from lithe.compress.allocation import Problem
from lithe.compress.recover.cfsp import ranks
from lithe.compress.recovery import Beside, recover
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model


def scores(spec):
    made = Stage(copied(small_model()), parse(spec), text(), 0, lambda *_: None, None, 0, 8)
    return made.problem.unit_scores


def test_with_the_released_norm_only_the_activations_count():
    found = scores("importance=cfsp:ratio=0.5,norm=channel")
    for layer, inputs in calibrate.blocks(small_model(), text(), ["inputs"]):
        down = inputs["mlp.down_proj"]
        rms = (down.square_K / down.tokens).sqrt()
        assert torch.allclose(found[f"layers.{layer}.mlp"], 3 * rms, rtol=1e-9)
        assert not torch.allclose(scores("importance=cfsp:ratio=0.5")[f"layers.{layer}.mlp"], 3 * rms, rtol=0.05)


def test_the_score_is_the_sum_written_out():
    block, (_, inputs) = small_model().layers[0].mlp, next(calibrate.blocks(small_model(), text(), ["inputs"]))
    down = inputs["mlp.down_proj"]
    wanted = torch.zeros(64, dtype=torch.float64)
    for matrix in (block.down_proj.weight.abs(), block.up_proj.weight.abs().T, block.gate_proj.weight.abs().T):
        for row in matrix:
            wanted += row / row.sum()
    wanted *= (down.square_K / down.tokens).sqrt()
    assert torch.allclose(scores("importance=cfsp:ratio=0.5")["layers.0.mlp"], wanted, rtol=1e-9)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.floats(0.05, 0.95))
@settings(max_examples=200, deadline=None)
def test_shares_have_the_mean_asked_and_stay_below_one(gates, share):
    found = shares({str(i): gate for i, gate in enumerate(gates)}, share)
    assert sum(found.values()) / len(found) == pytest.approx(share)
    assert max(found.values()) <= share + MARGIN * (1 - share) + 1e-9 or max(found.values()) <= 1
    assert min(found.values()) >= 0


def test_blocks_that_move_the_stream_further_keep_more_and_zero_strength_is_uniform():
    made = Stage(copied(small_model()), parse("importance=wanda_sp:ratio=0.4 + allocate=cfsp:strength=3"), text(), 0,
                 lambda *_: None, None, 0, 8)
    moved = made.problem.block_scores("angular")
    far, near = ("layers.0.mlp", "layers.1.mlp") if moved[0] > moved[1] else ("layers.1.mlp", "layers.0.mlp")
    levels = made.allocate().levels
    assert levels[far] > levels[near]
    flat = compress(small_model(), ["importance=wanda_sp:ratio=0.4 + allocate=cfsp:strength=0"], text(), dry_run=True)
    plain = compress(small_model(), ["importance=wanda_sp:ratio=0.4 + uniform"], text(), dry_run=True)
    assert flat.allocations[0].levels == plain.allocations[0].levels


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.integers(1, 16))
@settings(max_examples=200, deadline=None)
def test_ranks_have_the_mean_asked(found, mean):
    made = ranks(found, mean)
    assert sum(made) == mean * len(found) and min(made) >= 1


def test_recovery_trains_as_many_values_as_plain_lora_and_helps():
    dense = small_model()
    cut = compress(dense, ["importance=cfsp:ratio=0.5 + uniform"], text()).model
    from lithe.compress.fitness import nll

    lost = {}
    for even in ("false", "true"):
        work, note = recover(copied(cut), dense, parse(f"recover=cfsp:rank=4,steps=30,rate=3e-3,even={even}"), text(), seed=0,
                             kept=None, number=0)
        assert not any(isinstance(module, Beside) for module in work.modules())
        lost[even] = (nll(work, text()), note["trained"])
    assert all(after < nll(cut, text()) - 0.02 for after, _ in lost.values())
    assert 0.8 < lost["false"][1] / lost["true"][1] < 1.25


def test_whole_name_is_score_and_allocation():
    step = parse("cfsp:ratio=0.3")
    assert {shelf: spec.entry.address for shelf, spec in step.specs.items()} == {
        "importance": "compress/importance/cfsp", "allocate": "compress/allocate/cfsp"}
    assert parse(step.exact).exact == step.exact
    assert isinstance(Stage(copied(small_model()), step, text(), 0, lambda *_: None, None, 0, 8).problem, Problem)
