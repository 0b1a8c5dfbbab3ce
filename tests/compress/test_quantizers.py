"""AWQ, HQQ, SmoothQuant, DGQ and CBQ against their formulas, each with a control of its own."""

import pytest
import torch
from torch import nn

from lithe.compress import smooth
from lithe.compress.fitness import Fitness
from lithe.compress.quantize import awq, cbq, dgq, hqq, smoothquant
from lithe.compress.rescale import outliers
from lithe.compress.rounding import spread
from lithe.compress.rounds import Rounding
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model
from lithe.errors import UnsupportedError
from lithe.kernels.pack import levels
from lithe.model.narrow import NarrowLinear
from lithe.model.packing import layers


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(width=64, seed=1):
    mix = draw(width, width, seed=seed) * 0.2 + torch.eye(width)
    return mix @ mix.T


def twin():
    return outliers(copied(small_model()))


def lost(step, model):
    """KL of a compressed model, all weights masked (activations unrounded but where ranges say so)."""
    made = Stage(copied(model), parse(step), text(), 0, lambda *_: None, None, 0, 8)
    made.masked(made.allocate().levels)
    return Fitness(model, text())(made.work)


@pytest.mark.parametrize("step", ["awq:bits=4", "smoothquant:bits=4", "dgq:bits=4", "cbq:bits=4,epochs=0"])
def test_smoothing_changes_no_logit(step):
    model = copied(twin())
    wanted = logits(model)
    levels = {site: 4 for site in (f"layers.{i}.{name}" for i in (0, 1) for name in (
        *(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))}
    parsed = parse(step)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    parsed.act.smooth(model, text(), levels, parsed.target)
    assert any(not torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert (logits(model) - wanted).abs().max() < 1e-9


def test_smoothing_waits_for_all_readers():
    model = copied(twin())
    smooth.smooth(model, text(), {"layers.0.self_attn.q_proj": 4}, lambda w, inputs, even: inputs.most_K + 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin().parameters(), strict=True))


def test_awq_beats_rounding_where_channels_are_loud():
    model = twin()
    whole, plain = lost("awq:bits=3", model), lost("rtn:bits=3", model)
    assert whole < 0.7 * plain
    assert lost("awq:bits=3,grid=1,clip=false", model) == pytest.approx(plain)  # without both parts it is rounding
    assert awq.scaled(torch.tensor([1.0, 4.0]), 0.5).tolist() == pytest.approx([0.5**0.5, 2**0.5])


def test_awq_clips_only_where_outputs_lose_less():
    weight, mean = draw(16, 64), moment()
    off = lambda scale: smooth.group_errors(smooth.by_group(weight, 64).flatten(1) * scale, mean, 32)
    direct = torch.stack([((weight[:, g] @ mean[g, g]) * weight[:, g]).sum(1) for g in (slice(0, 32), slice(32, 64))], 1)
    assert torch.allclose(off(1.0), direct) and torch.allclose(off(2.0), 4 * direct)


def test_hqq_shrinks_as_the_proximal_step_does_and_lowers_the_norm():
    x = torch.tensor([-2.0, -0.01, 0.0, 0.5])
    assert torch.equal(hqq.shrunk(x, 1.0, 1.0), nn.functional.softshrink(x, 1.0))  # p = 1 is the soft threshold
    weight = draw(32, 128) ** 3
    error = {}
    for rounds in (0, 20):
        codes, scale, zero = hqq.fitted(weight, 3, 64, hqq.Knobs(rounds=rounds))
        wide = lambda value: value.double().repeat_interleave(64, 1)
        left = weight - wide(scale) * (codes.double() - wide(zero))
        assert codes.max() <= 7
        error[rounds] = float(left.abs().mean())
    assert error[20] < error[0]


def test_smoothquant_evens_out_what_is_read_and_what_is_weighed():
    most, top = torch.tensor([100.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 2.0])
    found = smoothquant.factors(most, top, 0.5)
    assert torch.allclose((most / found)[:2], (top * found)[:2]) and found[2] == 1
    assert torch.allclose((most / smoothquant.factors(most, top, 1.0))[:2], torch.ones(2))
    model = twin()
    behind = "smoothquant:bits=8,group=-1,input_bits=8,sites=q_proj+k_proj+v_proj+gate_proj+up_proj"
    assert lost(behind, model) < lost(f"{behind},strength=0", model)


def test_dgq_opens_to_eight_bits_exactly():
    made = compress(copied(small_model()).float(), ["dgq:bits=4,rows=8"], text()).model
    for layer in layers(made).values():
        assert isinstance(layer, NarrowLinear) and layer.kind == "dual4"
        whole, scale = levels(layer.packed, torch.arange(layer.out_features))
        assert layer.packed.kind == "int8" and scale.shape[1] == 1
        assert torch.equal(whole.float() * scale.float(), layer.weight)
        step, zero, codes = (layer.narrow.field(name).int() for name in ("step", "zero", "codes"))
        by_hand = step.repeat_interleave(layer.group, 1)[:, : layer.in_features] * (
            codes - zero.repeat_interleave(layer.group, 1)[:, : layer.in_features])
        assert torch.equal(by_hand, whole.int()) and int(whole.abs().max()) <= 127
        assert layer.in_features * 127 * 127 < 2**31  # sums fit int32


def test_dgq_is_near_real_scales_and_ahead_of_one_a_row():
    weight, mean = draw(48, 256) ** 3, moment(256)
    errors = {}
    for name, each in (("dual", 32), ("row", 256)):
        found = dgq.fitted(weight, mean, each, dgq.Knobs())
        wide = lambda key, found=found, each=each: found[key].double().repeat_interleave(each, 1)
        made = wide("step") * (found["codes"] - wide("zero")) * found["scale"].double()[:, None]
        errors[name] = float(((made - weight) @ mean * (made - weight)).sum())
    fine, zero = dgq._groups(weight, mean, 32, 20)
    codes = dgq._codes(weight, fine, zero, 32)
    off = (codes - zero.repeat_interleave(32, 1)) * fine.repeat_interleave(32, 1) - weight
    assert errors["dual"] < 0.5 * errors["row"] and errors["dual"] < 1.3 * float((off @ mean * off).sum())


def test_dgq_clips_only_loud_channels_and_that_helps():
    most = torch.ones(400)
    most[7] = 50.0
    found = dgq.clipped(most, 99.5)
    assert found[7] == 50 and int((found != 1).sum()) == 1
    model = twin()
    assert lost("dgq:bits=4,rows=8,input_bits=8,percentile=90", model) < lost(
        "dgq:bits=4,rows=8,input_bits=8,percentile=100", model)
    with pytest.raises(UnsupportedError, match="rounds to 4 bits"):
        compress(small_model(), ["dgq:bits=3"], text())


def test_cbq_finds_outliers_behind_the_widest_gap():
    sizes = torch.cat([torch.linspace(0, 1, 100), torch.tensor([2.1, 2.2, 9.0, 9.1])])
    assert cbq.threshold(sizes, 1.0) == pytest.approx(2.2)
    assert cbq.threshold(torch.linspace(0, 1, 100), 1.0) == 1.0


def test_rounding_begins_at_the_weights_and_ends_at_whole_levels():
    weight = draw(24, 40)
    for rank in (0, 3):
        layer = Rounding(weight, None, 4, 32, rank, 0, None, torch.Generator().manual_seed(0))
        scale = spread(layer.start_NG, 40)
        assert torch.allclose(layer.weight, (weight / scale).clamp(-8, 7) * scale)
        ((whole, scale),) = layer.change("x").levels.values()
        assert whole.min() >= -8 and whole.max() <= 7 and scale.shape == (24, 2)
    assert sum(p.numel() for p in layer.offsets) == 3 * (24 + 40)


def test_cbq_beats_rounding_to_nearest():
    model = copied(small_model())
    found = {name: lost(f"cbq:bits=2,outliers=false,rounding_rate=2e-2,step_rate=1e-3,{more}", model) for name, more in (
        ("nearest", "epochs=0"), ("one", "epochs=6,window=1"), ("two", "epochs=6,window=2"))}
    assert max(found["one"], found["two"]) < found["nearest"], found


def test_what_fits_blocks_cannot_be_measured_one_by_one():
    with pytest.raises(UnsupportedError, match="fits whole blocks"):
        compress(small_model(), ["cbq:bits=3,levels=2+4,epochs=0 + integer_program"], text())
