"""The loop of compression: surgery, budgets, resuming, and what it refuses."""

import dataclasses
import json

import pytest
import torch

from lithe import registry
from lithe.compress import api, solve
from lithe.compress.allocation import Allocation, Option, Problem
from lithe.compress.calibrate import of_ids
from lithe.compress.change import dequantized
from lithe.compress.fitness import Fitness, kl
from lithe.compress.groups import find
from lithe.compress.quantize.gptq import Knobs, rounded
from lithe.compress.rescale import outliers
from lithe.compress.run import Stage, compress, finished
from lithe.compress.step import SHELVES, Target, parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_folder, small_model
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.stats import walk

SHAPES = {
    "grouped": {"heads": 6, "kv_heads": 2, "head_dim": 8, "qkv_bias": True},
    "gemma": {"heads": 4, "kv_heads": 4, "norm_out": True, "norm_offset": 1.0, "qk_norm": "head", "activation": "gelu_tanh",
              "tied": True},
    "parallel": {"heads": 4, "kv_heads": 1, "parallel": True, "gated": False, "mlp_bias": True, "out_bias": True},
}


def model_of(**traits):
    model = Decoder(Config(vocab=32, width=32, layers=3, ffn=48, context=64, **traits)).init(1).double().eval()
    dice = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.requires_grad_(False).add_(0.2 * torch.randn(weight.shape, generator=dice, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("budget", ["unit=head,ratio=0.5", "unit=channel,ratio=0.45", "unit=half,ratio=0.4",
                                    "unit=layer,ratio=0.34"])
def test_every_kind_of_block_cuts_as_it_is_masked(name, budget, tmp_path):
    made = Stage(model_of(**SHAPES[name]), parse(f"magnitude_pruning:{budget}"), text(), 0, lambda *_: None, None, 0, 8)
    done = made.masked(made.allocate().levels)
    masked, cut = copied(made.work), finished(made.work, done)
    assert (logits(masked) - logits(cut)).abs().max() < 1e-10
    assert sum(w.numel() for w in cut.parameters()) < sum(w.numel() for w in masked.parameters())
    checkpoint.save(cut, tmp_path / "m", dtype=torch.float64)
    assert torch.equal(logits(checkpoint.load(tmp_path / "m", dtype=torch.float64)), logits(cut))


def test_no_method_has_a_knob_that_its_step_has():
    """The step would take it."""
    own = {f.name for f in dataclasses.fields(Target)}
    for shelf in SHELVES:
        for entry in registry.entries("compress", shelf):
            assert not own & {f.name for f in dataclasses.fields(entry.module.Knobs)}, entry.name


def test_widths_that_agree_are_a_stock_model(tmp_path):
    cut = compress(small_model(), ["magnitude_pruning:unit=channel,ratio=0.5 + uniform"], text()).model
    checkpoint.save(cut, tmp_path / "m")
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    assert raw["model_type"] == "llama" and raw["intermediate_size"] == 32


def test_norms_over_all_heads_are_refused():
    with pytest.raises(UnsupportedError, match="norms all heads together"):
        compress(model_of(heads=4, kv_heads=2, qk_norm="all"), ["magnitude_pruning:unit=head,ratio=0.5"])


def test_the_outlier_twin_has_the_same_logits_and_other_weights():
    for traits in SHAPES.values():
        if traits.get("gated", True):
            dense = model_of(**traits)
            twin = outliers(copied(dense))
            assert (logits(twin) - logits(dense)).abs().max() < 1e-9
            loud = twin.layers[0].mlp.up_proj.weight.abs().amax(0)
            assert loud.max() / loud.min() > 20


def test_the_program_finds_what_trying_all_plans_finds():
    dice = torch.Generator().manual_seed(2)
    groups = find(small_model(), "channel")
    options = {g.name: [Option(level=i, cost=float(c)) for i, c in enumerate(torch.rand(5, generator=dice).cumsum(0))]
               for g in groups}
    errors = {g.name: torch.rand(5, generator=dice).tolist() for g in groups}
    a, b = (g.name for g in groups)
    for budget in (1.5, 2.0, 3.0):
        problem = Problem(groups=groups, options=options, budget=budget)
        found = solve.best_sum(problem, errors)
        all_plans = [(errors[a][i] + errors[b][j], {a: i, b: j}) for i in range(5) for j in range(5)
                     if options[a][i].cost + options[b][j].cost <= budget]
        assert found == min(all_plans, key=lambda pair: pair[0])[1] and problem.notes["status"] == "optimal"


def test_kl_of_the_likeliest_tokens_is_below_the_whole_one_and_near_it():
    dice = torch.Generator().manual_seed(0)
    p, q = (torch.randn(7, 50, generator=dice).mul(3).log_softmax(-1) for _ in range(2))
    whole = kl(p, q, p.argsort())
    top, ids = p.topk(20)
    part = kl(top, q, ids)
    assert (part <= whole + 1e-5).all() and (part > 0.8 * whole).all()
    assert torch.allclose(whole, torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1), atol=1e-5)
    assert Fitness(small_model(), text())(small_model()) == pytest.approx(0, abs=1e-12)


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_and_ends_alike(tmp_path):
    asked = {"methods": ["wanda_sp:ratio=0.3,unit=channel", "gptq:bits=4"], "calibration": text()}
    model = checkpoint.load(small_folder(layers=2), dtype=torch.float32)
    model.folder = small_folder(layers=2)
    whole = api.compress(model, **asked, out=tmp_path / "whole")

    def stop(what, done, total):
        if what.startswith("gptq") and done == 1:
            raise KeyboardInterrupt

    before = {name: w.clone() for name, w in model.named_parameters()}
    with pytest.raises(Exception, match="the same command goes on"):
        api.compress(model, **asked, out=tmp_path / "parts", tell=stop)
    assert not (tmp_path / "parts").exists()
    with pytest.raises(UsageError, match="another run"):
        api.compress(model, ["magnitude_pruning:ratio=0.5"], out=tmp_path / "parts")
    again = api.compress(model, **asked, out=tmp_path / "parts")
    assert torch.equal(logits(again.model), logits(whole.model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())
    receipts = json.loads((tmp_path / "parts" / "lithe.json").read_text())["receipts"]
    assert [receipt["method"] for receipt in receipts] == asked["methods"] and receipts[0]["parent"] == receipts[1]["parent"]
    assert Allocation.of(receipts[0]["allocation"]).levels.keys() == {"layers.0.mlp", "layers.1.mlp"}


@pytest.mark.parametrize(("step", "told"), [
    ("magnitude_pruning", "must say once how much"), ("magnitude_pruning:ratio=0.5,bits=4", "ratio and bits"),
    ("rtn:bits=4 + svd", "acts twice"), ("magnitude_pruning:bytes=0.5", "save no bytes"),
    ("magnitude_pruning:ratio=1.5", "above"),
    ("magnitude_prunin:ratio=0.5", "did you mean magnitude_pruning"), ("magnitude_pruning:ratio=0.5,damping=1", "no knob"),
    ("wanda:ratio=0.5,unit=head", "knows the units entry"), ("uniform:ratio=0.5", "names nothing"),
    ("magnitude_pruning:pattern=4:2", "not n:m"), ("gptq:bits=12,count=nominal", "2, 3, 4, 5, 6, 7, 8 bits, not 12"),
    ("magnitude_pruning:ratio=0.5,sites=nowhere", "no entry groups")])
def test_what_cannot_be_is_told(step, told):
    with pytest.raises((UsageError, UnsupportedError), match=told):
        compress(small_model(), [step], text())


def test_orders_and_texts_that_cannot_be_are_told():
    with pytest.raises(UnsupportedError, match="put it last"):
        compress(small_model(), ["rtn:bits=4", "magnitude_pruning:ratio=0.5"])
    with pytest.raises(UsageError, match="needs a calibration text"):
        compress(small_model(), ["wanda:ratio=0.5"])
    with pytest.raises(FormatError, match="3 tokens"):
        of_ids([1, 2, 3], length=8)
    with pytest.raises(UnsupportedError, match="packed already"):
        compress(compress(small_model(), ["rtn:bits=4"]).model, ["magnitude_pruning:ratio=0.5"])
    with pytest.raises(UsageError, match="cannot be met"):
        compress(small_model(), ["svd:ratio=0.99"])


def test_too_little_text_is_noted():
    found = compress(small_model(), ["gptq:bits=4"], of_ids(list(range(20)), length=20))
    assert any("lack rank" in line for line in found.report["steps"][0]["health"])


def test_an_order_and_ranges_of_their_own_lose_less_and_each_column_keeps_its_place():
    dice = torch.Generator().manual_seed(0)
    weight, mix = (torch.randn(n, 96, generator=dice, dtype=torch.float64) for n in (64, 96))
    loud = torch.linspace(0.1, 3, 96, dtype=torch.float64)
    moment = (mix @ mix.mT / 96 + torch.eye(96)) * loud[:, None] * loud

    def lost(moment, **knobs):
        made = rounded(weight, moment, 3, 32, Knobs(**knobs))
        off = dequantized(*made).double() - weight
        return float((off @ moment * off).sum()), made

    plain = lost(moment)[0]
    for more in ({"order": True}, {"clip": 0.5}, {"order": True, "clip": 0.5}):
        assert lost(moment, **more)[0] < 0.95 * plain
    alike = torch.eye(96, dtype=torch.float64)  # nothing to make up for, and no input louder than another
    (_, one), (_, other) = lost(alike), lost(alike, order=True)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_rounding_with_second_moments_loses_less_than_rounding_to_nearest():
    model, lost = outliers(copied(small_model())), {}
    _, found = next(walk(model, text().batches))
    for name in ("rtn", "gptq"):
        made = Stage(copied(model), parse(f"{name}:bits=3"), text(), 0, lambda *_: None, None, 0, 8)
        made.masked(made.allocate().levels)
        for site, inputs in found.items():
            old, new = (m.get_submodule(f"layers.0.{site}").weight for m in (model, made.work))
            error = (old - new) @ inputs.second_moment_KK.double() @ (old - new).mT
            lost.setdefault(name, []).append(float(error.detach().trace()))
    assert all(g < r for g, r in zip(lost["gptq"], lost["rtn"], strict=True)) and sum(lost["gptq"]) < 0.85 * sum(lost["rtn"])


def test_wanda_does_not_mind_a_rescale_that_magnitude_minds():
    model, kls = small_model(), {}
    for name in ("wanda", "magnitude_pruning"):
        for twin in (copied(model), outliers(copied(model))):
            kls.setdefault(name, []).append(Fitness(model, text())(compress(twin, [f"{name}:ratio=0.5"], text()).model))
    assert kls["wanda"][0] == pytest.approx(kls["wanda"][1], rel=1e-6)
    assert kls["magnitude_pruning"][1] > 1.2 * kls["magnitude_pruning"][0] and kls["magnitude_pruning"][1] > kls["wanda"][1]


def test_a_plan_from_a_file_is_taken_and_held_against_the_model(tmp_path):
    step, file = "magnitude_pruning:ratio=0.5,unit=channel", tmp_path / "plan.json"
    planned = compress(small_model(), [step], dry_run=True).allocations[0]
    a, b = planned.levels
    file.write_text(json.dumps(planned.json() | {"levels": {a: 16, b: 48}}))
    assert compress(small_model(), [f"{step},plan={file}"]).model.config.ffn == (16, 48)
    for levels, told in (({a: 64, b: 48}, "are allowed"), ({a: 16}, "other groups"), ({a: 17, b: 48}, "cannot get level 17")):
        file.write_text(json.dumps(planned.json() | {"levels": levels}))
        with pytest.raises(UsageError, match=told):
            compress(small_model(), [f"{step},plan={file}"])
    file.write_text("{}")
    with pytest.raises(FormatError, match="an allocation has"):
        compress(small_model(), [f"{step},plan={file}"])
