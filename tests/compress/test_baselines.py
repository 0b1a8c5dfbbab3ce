"""FLAP, ShortGPT and SparseGPT against what their formulas say."""

import pytest
import torch

from lithe.compress import calibrate
from lithe.compress.fitness import Fitness
from lithe.compress.rescale import outliers
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model
from lithe.model.decoder import NONE
from lithe.train.stats import walk


def stage(spec, model=None):
    return Stage(copied(model or small_model()), parse(spec), text(), 0, lambda *_: None, None, 0, 8)


def outputs(model, site):
    """What a site gives on the calibration text [tokens, N]."""
    seen = []
    hook = model.get_submodule(site).register_forward_hook(lambda _, x, y: seen.append(y.flatten(0, 1)))
    with torch.no_grad():
        for batch in text().batches:
            model(batch["ids_BT"], logits=NONE)
    hook.remove()
    return torch.cat(seen)


def test_flaps_bias_keeps_the_mean_output():
    for unit, site in (("channel", "layers.0.mlp.down_proj"), ("head", "layers.0.self_attn.o_proj")):
        wanted = outputs(small_model(), site).mean(0)
        made = stage(f"flap:ratio=0.5,unit={unit}")
        made.masked(made.allocate().levels)
        bare = stage(f"importance=flap:ratio=0.5,unit={unit} + allocate=flap")
        bare.masked(bare.allocate().levels)
        assert torch.allclose(outputs(made.work, site).mean(0), wanted, atol=1e-9)
        assert not torch.allclose(outputs(bare.work, site).mean(0), wanted, atol=1e-3)


def test_flap_loses_nothing_of_a_channel_that_never_changes():
    model = copied(small_model())
    with torch.no_grad():  # gates of zero weight give silu(0) = 0: these channels are constant, and so without any fluctuation
        model.layers[0].mlp.gate_proj.weight[:24] = 0
    cut = compress(model, ["flap:ratio=0.18,unit=channel"], text()).model
    assert torch.allclose(logits(cut), logits(model), atol=1e-9)


def test_block_influence_is_that_of_the_residual_stream():
    made = stage("shortgpt:ratio=0.5")
    scores = made.problem.unit_scores
    wanted = calibrate.block_scores(small_model(), text(), "cosine")
    assert [float(scores[f"layers.{i}"]) for i in range(2)] == pytest.approx(wanted, rel=1e-6)
    gone = [name for name, level in made.allocate().levels.items() if level == 0]
    assert gone == [f"layers.{min(range(2), key=lambda i: wanted[i])}"]


def test_halves_are_scored_by_what_they_do_alone():
    scores = stage("shortgpt:ratio=0.5,unit=half").problem.unit_scores
    batch, model = text().batches[0], small_model()
    with torch.no_grad():
        x = torch.cat([model.embed(b["ids_BT"]) for b in text().batches]).flatten(0, 1)
        y = torch.cat([model(b["ids_BT"], layers=[0], skip=[(0, "mlp")], logits=NONE).hidden for b in text().batches])
        y = y.flatten(0, 1)
    wanted = 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1).mean()
    assert float(scores["layers.0.self_attn"]) == pytest.approx(float(wanted), rel=1e-6) and len(batch)


def test_sparsegpt_loses_less_than_masks_alone_and_is_exact_least_squares_for_one_block():
    model = outliers(copied(small_model()))
    _, found = next(walk(model, text().batches))
    for site, inputs in found.items():
        lost = {}
        for name in ("wanda", "sparsegpt"):
            made = stage(f"{name}:ratio=0.5", model)
            made.masked(made.allocate().levels)
            old, new = (m.get_submodule(f"layers.0.{site}").weight for m in (model, made.work))
            lost[name] = float(((old - new) @ inputs.second_moment_KK.double() @ (old - new).mT).trace())
        assert lost["sparsegpt"] < lost["wanda"], site
        break


def test_sparsegpt_helps_in_the_end():
    model, fitness = outliers(copied(small_model())), None
    fitness = Fitness(model, text())
    lost = {name: fitness(compress(model, [f"{name}:ratio=0.3"], text()).model) for name in ("magnitude_pruning", "sparsegpt")}
    assert lost["sparsegpt"] < lost["magnitude_pruning"]


def test_whitened_svd_loses_least_of_all_products_of_that_rank():
    model = outliers(copied(small_model()))
    _, found = next(walk(model, text().batches, dtype=torch.float64))
    for name in ("svd", "whitened_svd:damping=1e-9"):
        made = stage(f"{name.partition(':')[0]}:rank=6" + (",damping=1e-9" if ":" in name else ""), model)
        made.masked(made.allocate().levels)
        for site in ("mlp.up_proj", "self_attn.o_proj"):
            old, new = (m.get_submodule(f"layers.0.{site}").weight.detach() for m in (model, made.work))
            moment = found[site].second_moment_KK if site == "mlp.up_proj" else None
            if moment is None:
                continue  # behind the layer's changed matrices it reads other inputs
            lost = float(((old - new) @ moment @ (old - new).mT).trace())
            values = torch.linalg.svdvals(old @ torch.linalg.cholesky(moment + 1e-12 * torch.eye(len(moment))))
            least = float(values[6:].square().sum())
            assert (lost == pytest.approx(least, rel=1e-3)) == (":" in name) and lost >= least * (1 - 1e-3)
