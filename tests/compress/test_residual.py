"""Fewer residual channels: a basis that changes nothing, a cut that computes what the mask did, SliceGPT and PAT."""

import json

import pytest
import torch

from lithe.compress import residual
from lithe.compress.calibrate import of_ids
from lithe.compress.fitness import Fitness
from lithe.compress.recover.slicegpt import moments
from lithe.compress.recovery import recover
from lithe.compress.run import compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import decided, small_model
from lithe.errors import UnsupportedError
from lithe.model import checkpoint
from lithe.model.config import Config

SHAPES = {"plain": {}, "tied": {"tied": True}, "biased": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
          "parallel": {"parallel": True, "gated": False}, "normed heads": {"qk_norm": "head"}}


def shaped(name):
    return decided(Config(vocab=32, width=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64, **SHAPES[name]), 1, 3.0)


@pytest.mark.parametrize("name", SHAPES)
def test_channels_that_are_always_zero_can_go(name):
    model = shaped(name)
    kept = torch.tensor([c for c in range(32) if c % 4])
    gone = [c for c in range(32) if c % 4 == 0]
    with torch.no_grad():
        model.embed_tokens.weight[:, gone] = 0
        for block in model.layers:
            for site in (block.self_attn.o_proj, block.mlp.down_proj):
                site.weight[gone] = 0
                if site.bias is not None:
                    site.bias[gone] = 0
    cut = residual.narrowed(model, kept)
    assert cut.config.width == 24 and (logits(cut) - logits(model)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["plain", "tied", "biased", "parallel"])
def test_another_basis_is_the_same_function(name):
    model = shaped(name)
    turn, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    made = residual.turned(model, turn)
    assert (logits(made) - logits(model)).abs().max() < 1e-9 and not made.config.tied
    assert not torch.allclose(made.embed_tokens.weight, model.embed_tokens.weight)


def test_the_principal_axes_lose_less_than_the_channels_as_they_are():
    model = small_model()
    cut = compress(model, ["recover=slicegpt:ratio=0.25"], text()).model
    assert cut.config.width == 24
    order = moments(model, text()).diagonal().argsort(descending=True)[:24].sort().values
    fitness = Fitness(model, text(), top=32)
    assert fitness(cut) < fitness(residual.narrowed(model, order))


def test_what_cannot_be_narrowed_is_refused():
    model = decided(Config(vocab=32, width=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64, norm_out=True), 0, 3.0)
    for step in ("recover=slicegpt", "pat:steps=2"):
        with pytest.raises(UnsupportedError, match="norms what its blocks give"):
            compress(model, [step], text())


def tuned(knobs, model=None):
    """A model that PAT has trained, masked and not yet merged, and the method."""
    step = parse(f"pat:{knobs}")
    work, method = copied(model or small_model()), step.recover
    seen = {}
    finish = method.finish
    method.finish = lambda work: seen.setdefault("masked", logits(work).clone()) is None or finish(work)
    done, note = recover(work, small_model(), step, text(), seed=0, kept=None, number=0)
    return done, method, seen["masked"], note


@pytest.mark.parametrize("tied", [False, True])
def test_pat_ends_at_the_width_asked_for_and_merged_computes_what_it_did_masked(tied, tmp_path):
    model = shaped("tied") if tied else small_model()
    done, method, masked, note = tuned("ratio=0.25,steps=20,rate=1e-2,mask_gain=10", model)
    assert done.config.width == 24 == len(method.mask.kept_C) and done.config.tied == tied
    assert (logits(done) - masked).abs().max() < 1e-9 and note["trained"] > 0
    checkpoint.save(done, tmp_path / "m")
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    assert raw["model_type"] == "llama" and raw["hidden_size"] == 24 and raw["head_dim"] == 8
    assert torch.equal(logits(checkpoint.load(tmp_path / "m", dtype=torch.float64)), logits(done))


def test_pat_learns_and_its_identity_loss_keeps_the_turn_well_conditioned():
    apart = {}
    for weight in (0, 1):
        done, method, _, _ = tuned(f"ratio=0.25,steps=40,rate=1e-2,turn=8,identity={weight}")
        apart[weight] = max(float(torch.linalg.cond(site.w1.detach() @ site.w1.detach().T)) for site in method.sites)
    assert apart[1] < apart[0]
    fitness = Fitness(small_model(), text(), top=32)
    bare, _, _, _ = tuned("ratio=0.25,steps=0")
    assert fitness(done) < fitness(bare)


def test_the_mask_starts_at_one_and_sharpens():
    _, method, _, _ = tuned("ratio=0.25,steps=10,rate=1e-2")
    method.mask.kept_C = None
    method.at(0)
    with torch.no_grad():
        method.mask.m.zero_()
    assert torch.equal(method.mask.value, torch.ones(32, dtype=torch.float64))
    with torch.no_grad():
        method.mask.m.copy_(torch.linspace(-0.01, 0.01, 32))
    spread = []
    for step in (0, 3, 7):
        method.at(step)
        spread.append(float((method.mask.value.max() - method.mask.value.min()).detach()))
    assert spread[0] < spread[1] < spread[2]
    method.at(8)
    assert sorted(method.mask.value.tolist()) == [0.0] * 8 + [1.0] * 24


def test_a_narrowed_model_is_pruned_further():
    rows = of_ids(torch.arange(256).remainder(31), length=32)
    made = compress(small_model(), ["recover=slicegpt:ratio=0.25", "magnitude_pruning:unit=channel,ratio=0.25"], rows).model
    assert made.config.width == 24 and made.config.layer(0).ffn < 64
