"""What PEFT has of sparse tuning judges ours: the same support and values give its logits and its gradients."""

import warnings

import pytest
import torch

from lithe.model.checkpoint import load
from lithe.model.decoder import ALL
from lithe.tune.rack import Rack
from tests.methods.test_deltas import DELTA, through
from tests.model import families_zoo as zoo
from tests.tune.entry_runs import run

peft = pytest.importorskip("peft", reason="peft is in the extra `test`")
torch.set_num_threads(1)
IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))
TARGETS = ["q_proj", "v_proj", "down_proj"]
TRAINED = [f"{spec},targets={'+'.join(TARGETS)}" for spec in (
    "id3:density=0.05", "spiel:density=0.05,every=4,look=2", "sara:density=0.05", "lt_sft:density=0.05")]


@pytest.fixture
def pair(tmp_path):
    """transformers' small model and ours of the same weights, in float64."""
    torch.manual_seed(0)
    big = zoo.make("llama")
    big.save_pretrained(tmp_path / "base")
    return big.double(), load(tmp_path / "base", dtype=torch.float64)


def theirs(big, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(big, config)
    layers = {name.partition(".model.model.")[2]: module for name, module in model.named_modules()
              if isinstance(module, (peft.tuners.shira.layer.ShiraLayer, peft.tuners.supertuning.layer.SupertuningLayer))}
    return model, layers


def slope(scores_BTV):
    return scores_BTV.log_softmax(-1)[..., 0].sum()


@pytest.mark.parametrize("spec", TRAINED)
def test_a_trained_support_is_shira_with_that_mask(spec, pair):
    """Forward and backward, at the places that a method ended with."""
    big, model = pair
    adapter, _ = run(spec, base=model, steps=8)
    adapter.method.finish(adapter.parts) if hasattr(adapter.method, "finish") else None
    Rack.of(model).train("a")
    judge, layers = theirs(big, peft.ShiraConfig(r=1, target_modules=TARGETS))
    assert layers.keys() == adapter.parts.keys()
    for site, part in adapter.parts.items():
        layer, places = layers[site], part.places.long()
        layer.shira_indices["default"] = torch.stack([places // part.shape[1], places % part.shape[1]]).int()
        layer.shira_weight["default"] = torch.nn.Parameter(part.values.detach().clone())
    ours, other = model(IDS, logits=ALL).scores, judge(IDS).logits
    assert (ours - other).abs().max() <= 1e-5 and any(part.values.abs().max() > 1e-3 for part in adapter.parts.values())
    slope(ours).backward()
    slope(other).backward()
    for site, part in adapter.parts.items():
        assert torch.allclose(part.values.grad, layers[site].shira_weight["default"].grad, atol=1e-5)


def test_columns_are_shira_with_a_mask_of_columns(pair):
    big, model = pair
    adapter = Rack.of(model).make("s2ft:share=0.05", name="a")
    with torch.no_grad():
        for part in adapter.parts.values():
            part.matrix.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    targets = sorted({site.rpartition(".")[2] for site in adapter.parts})
    judge, layers = theirs(big, peft.ShiraConfig(r=1, target_modules=targets))
    for site, layer in layers.items():
        layer.shira_weight["default"] = torch.nn.Parameter(torch.zeros(0).double())
        layer.shira_indices["default"] = torch.zeros(2, 0).int()
        if site in adapter.parts:
            part = adapter.parts[site]
            mask = torch.zeros(layer.out_features, layer.in_features)
            mask[:, part.places] = 1
            layer.shira_indices["default"] = torch.stack(torch.where(mask == 1)).int()
            layer.shira_weight["default"] = torch.nn.Parameter(part.matrix[:, part.places.argsort()].detach().flatten())
    assert (model(IDS, logits=ALL).scores - judge(IDS).logits).abs().max() <= 1e-5


def test_the_smallest_weights_are_super_tunings(pair):
    """SaRA's first half: theirs takes a share of each layer, so one layer is looked at."""
    big, model = pair
    target = "layers.1.mlp.down_proj"
    part = Rack.of(model).make(f"sara:density=0.1,targets={target}", name="a").parts[target]
    _, layers = theirs(big, peft.SupertuningConfig(target_modules=[target], sparsity=1 - len(part.idx) / 1536 - 1e-9,
                                                   select_top=False))
    assert torch.equal(layers[target].supertuning_indices["default"].sort().values, part.idx)


def test_a_product_and_entries_are_supra(pair):
    big, model = pair
    target = "layers.1.mlp.down_proj"
    adapter = Rack.of(model).make(f"dsee:rank=3,alpha=6,entries=40,prune=0,support=magnitude,targets={target},pruned={target}",
                                  name="a")
    part, dice = adapter.parts[target], torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in part.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=dice))
    judge, layers = theirs(big, peft.SupertuningConfig(target_modules=[target], sparsity=1 - 40.5 / 1536, r=3, lora_alpha=6))
    layer = layers[target]
    assert torch.equal(layer.supertuning_indices["default"].sort().values, part.idx)
    order = layer.supertuning_indices["default"].argsort().argsort()
    layer.supertuning_values["default"] = torch.nn.Parameter((part.scale * part.values.detach())[order])
    layer.supertuning_lora_A["default"].weight = torch.nn.Parameter(part.a.detach().clone())
    layer.supertuning_lora_B["default"].weight = torch.nn.Parameter(part.b.detach().clone())
    ours = model(IDS, logits=ALL).scores
    Rack.of(model).use(None)
    plain = model(IDS, logits=ALL).scores
    assert (ours - plain).abs().max() > 1e-3 and (ours - judge(IDS).logits).abs().max() <= 1e-5


def test_dropping_is_pefts_where_both_keep():
    """DAREx at q = 1 - p is `dare_linear`: the same values at whatever is kept, and nothing elsewhere."""
    from peft.utils.merge_utils import dare_linear

    torch.manual_seed(0)
    theirs = dare_linear([DELTA], torch.ones(1), density=0.25)
    ours = through("darex:drop=0.75,over=1,values=F32")
    both = (ours != 0) & (theirs != 0)
    assert both.sum() > 30 and torch.allclose(ours[both], theirs[both], rtol=1e-5)
