"""KappaTune: what the condition number does not see, what it chooses, and what stays frozen."""

import json

import numpy as np
import pytest
import torch

from lithe import registry
from lithe.contracts.adapter import fresh
from lithe.errors import UsageError
from lithe.model.corpus import cache
from lithe.tune.rack import Rack
from lithe.tune.targets import LINEARS, linears


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LITHE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def method():
    return registry.find("kappatune").module


@pytest.mark.parametrize("measure", ["kappa", "quantile", "rank"])
def test_no_scale_or_rotation_changes_it_but_anisotropy_does(method, measure):
    dice = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=dice, dtype=torch.float64)
    weight = draw(40, 24)
    turn = lambda n: torch.linalg.qr(draw(n, n))[0]
    of = lambda w: method.MEASURES[measure](torch.linalg.svdvals(w))
    assert of(weight * 7.3) == pytest.approx(of(weight), rel=1e-9)
    assert of(turn(40) @ weight @ turn(24)) == pytest.approx(of(weight), rel=1e-9)
    assert of(turn(24)) == pytest.approx(1, rel=1e-9) and of(weight * torch.logspace(0, 2, 24)) > 2 * of(weight) > 2
    assert method.kappa(torch.tensor([2.0, 1.0, 0.0])) == float("inf")


def test_the_order_is_numpys_and_the_values_are_kept(method, monkeypatch):
    layers = linears(fresh(), LINEARS)
    found = method.conditions(layers, "kappa")
    theirs = {site: np.linalg.cond(layer.weight.detach().numpy(), 2) for site, layer in layers.items()}
    assert sorted(found, key=found.get) == sorted(theirs, key=theirs.get)
    assert len(list(cache().iterdir())) == 1
    monkeypatch.setattr(torch.linalg, "svdvals", lambda w: pytest.fail("worked out twice"))
    assert method.conditions(layers, "kappa") == found


def test_planted_matrices_are_chosen_from_either_end():
    model = fresh()
    even = ["layers.0.mlp.up_proj", "layers.1.self_attn.k_proj"]
    for site, layer in linears(model, even).items():
        layer.weight.data = torch.linalg.qr(layer.weight.T)[0].T.contiguous() if site.endswith("k_proj") else \
            torch.linalg.qr(layer.weight)[0]
    rack = Rack.of(model)
    for measure in ("kappa", "quantile", "rank"):
        assert list(rack.make(f"kappatune:count=2,measure={measure}", name=measure).parts) == even
    high = rack.make("kappatune:count=12,order=high", name="high")
    assert len(high.parts) == 12 and not high.parts.keys() & set(even)
    random = rack.make("kappatune:count=12,order=random", name="random")
    assert random.parts.keys() != high.parts.keys() and random.size == random.method.size(model)


def test_a_share_is_met_by_whole_matrices_or_by_the_rank():
    model = fresh()
    rack = Rack.of(model)
    whole = rack.make("kappatune:share=0.3", name="whole")
    assert 0.3 * model.size - 32 * 64 < whole.size <= 0.3 * model.size
    low = rack.make("kappatune:share=0.1,count=5,part=low_rank", name="low")
    ranks = {part.rank for part in low.parts.values()}
    assert len(low.parts) == 5 and len(ranks) == 1 and 0.08 * model.size < low.size <= 0.1 * model.size
    with pytest.raises(UsageError, match="smaller count"):
        rack.make("kappatune:share=0.001,count=14,part=low_rank", name="none")


def test_the_chosen_modules_are_what_peft_reads(tmp_path):
    model = fresh()
    rack = Rack.of(model)
    made = rack.make("kappatune:count=3,part=low_rank,rank=4", name="a")
    rack.save("a", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(f"model.{site}" for site in made.parts)
    assert (config["r"], config["lora_alpha"]) == (4, 8)
