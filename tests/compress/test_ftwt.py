"""FTWT: targets that hold their mass, a gathered FFN that is the masked one, predictors that learn."""

import pytest
import torch

from lithe.compress.recover.ftwt import wanted
from lithe.compress.recovery import recover
from lithe.compress.run import compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import IDS, logits, text
from lithe.contracts.small import decided, small_model
from lithe.errors import FormatError, UnsupportedError
from lithe.model import checkpoint
from lithe.model.chosen import Chosen
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.modules import FFN

RELU = Config(vocab=32, width=32, layers=2, heads=4, kv_heads=2, ffn=64, context=64, activation="relu")


def test_targets_are_the_fewest_channels_that_hold_the_mass():
    dice = torch.Generator().manual_seed(0)
    inner, down = torch.randn(5, 12, generator=dice), torch.rand(4, 12, generator=dice)
    on, mass = wanted(inner, down, 0.8), inner.abs() * down.norm(dim=0)
    for row, kept in zip(mass, on, strict=True):
        assert row[kept].sum() >= 0.8 * row.sum() > row[kept].sum() - row[kept].min()
        assert row[kept].min() >= row[~kept].max()
    assert wanted(inner, down, 1.0).all()


@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
def test_gathered_channels_are_the_masked_ones_whoever_else_is_in_the_batch(gated, bias):
    torch.manual_seed(0)
    ffn = Chosen(FFN(16, 40, activation="silu", gated=gated, bias=bias), 4).double().requires_grad_(False)
    ffn.choose_b.bias.fill_(-0.4)  # few are on
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    on = (ffn.logits(x) > 0).double()
    assert 0 < on.mean() < 0.4
    wanted_out = ffn.down_proj(ffn._inner(x) * on)
    assert torch.allclose(ffn(x), wanted_out, atol=1e-12)
    for row in x.flatten(0, 1):
        assert torch.allclose(ffn(row[None, None]), ffn.down_proj(ffn._inner(row) * (ffn.logits(row) > 0)), atol=1e-12)
    ffn.down_proj.weight.mul_(2)  # what was laid out for gathering follows
    assert torch.allclose(ffn(x), ffn.down_proj(ffn._inner(x) * on), atol=1e-12)


def tuned(knobs):
    dense = decided(RELU, 0, 3.0)
    step, work = parse(f"ftwt:{knobs}"), copied(dense)
    done, _ = recover(work, dense, step, text(), seed=0, kept=None, number=0)
    return done, step.recover


def entropy(model, tau):
    """The predictors' cross-entropy on the text that they learn from, and the share of channels that they compute."""
    found = []
    for block in model.layers:
        seen = []
        hook = block.mlp.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].flatten(0, 1)))
        with torch.no_grad():
            for batch in text().batches:
                model(batch["ids_BT"])
            hook.remove()
            x = torch.cat(seen)
            logits_MF, inner_MF = block.mlp.logits(x), block.mlp._inner(x)
            target = wanted(inner_MF, block.mlp.down_proj.weight, tau).to(logits_MF)
        off = torch.nn.functional.binary_cross_entropy_with_logits(logits_MF, target)
        found.append((float(off), float((logits_MF > 0).double().mean())))
    return torch.tensor(found).mean(0).tolist()


def test_predictors_learn_from_the_ffns_own_answers():
    before, everything = entropy(tuned("tau=0.9,steps=0")[0], 0.9)
    after, share = entropy(tuned("tau=0.9,steps=40,predictor_rate=1e-2,rank=16,tune=none,settle=1")[0], 0.9)
    assert everything == 1.0 and share < 1 and after < 0.5 * before


def test_what_is_saved_loads_chooses_and_decodes_the_same(tmp_path):
    done, _ = tuned("tau=0.8,steps=20,rate=1e-2,predictor_rate=1e-2")
    assert [name for name, _ in done.config.chosen] == ["layers.0.mlp", "layers.1.mlp"]
    checkpoint.save(done, tmp_path / "m", dtype=torch.float64)
    again = checkpoint.load(tmp_path / "m", dtype=torch.float64)
    assert isinstance(again.layers[0].mlp, Chosen) and torch.equal(logits(again), logits(done))
    rows = torch.cat([again(IDS[:1, : n + 1]).scores[0, -1:] for n in range(6)])
    assert torch.allclose(rows, logits(again)[0, :6], atol=1e-9)  # a token's channels are its own


def test_what_cannot_be_is_told():
    done, _ = tuned("tau=0.8,steps=1")
    with pytest.raises(UnsupportedError, match="token by token"):
        compress(done, ["magnitude_pruning:unit=channel,ratio=0.5"], text())
    with pytest.raises(UnsupportedError, match="another choice"):
        compress(done, ["ftwt:steps=1"], text())
    with pytest.raises(FormatError, match="is no FFN"):
        Decoder(RELU.replace(chosen=(("layers.0.self_attn", 4),)))
    assert small_model().config.to_json().keys() == RELU.to_json().keys()  # models without it keep their names
