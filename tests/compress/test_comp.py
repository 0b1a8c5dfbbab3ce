"""COMP: what makes a layer ill conditioned, factors by normal equations, blocks and units under one budget."""

import pytest
import torch

from lithe.compress import calibrate
from lithe.compress.importance.comp import rows
from lithe.compress.prune.comp import factors
from lithe.compress.run import Stage, compress, finished
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model


def stage(spec, model=None):
    return Stage(copied(model or small_model()), parse(spec), text(), 0, lambda *_: None, None, 0, 8)


def lost(made):
    """The squared error of each reading layer's outputs on what it reads in the model as it was."""
    levels, found = made.allocate().levels, {}
    for layer, inputs in calibrate.blocks(made.work, text(), ["moments"]):
        source = made.source(layer, inputs)
        for group in (g for g in made.groups if g.layer == layer):
            change = made.step.change(group, levels[group.name], source)
            site = group.site("down_proj" if group.unit == "channel" else "o_proj")
            old = source.weight(site)
            new = change.weights.get(site)
            if change.kept is None:
                new = old
            elif new is None:
                new = torch.zeros_like(old)
                each = old.shape[1] // group.units
                kept = (change.kept[:, None] * each + torch.arange(each)).flatten()
                new[:, kept] = old[:, kept]
            off = old - new
            found[site] = float(((off @ inputs[site.split(".", 2)[2]].second_moment_KK) * off).sum())
    return found


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_factors_lower_every_layers_error_and_all_weights_lower_it_more(ratio):
    bare, mask, full = (lost(stage(f"comp:ratio={ratio},phi=0,tune={tune}")) for tune in ("none", "mask", "full"))
    assert bare.keys() == mask.keys() and len(bare) == 4
    for site in bare:
        assert full[site] <= mask[site] * (1 + 1e-6) <= bare[site] * (1 + 1e-6)
    assert sum(mask.values()) < sum(bare.values())


def test_factors_solve_the_normal_equations_and_wild_ones_are_refused():
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 12, generator=dice, dtype=torch.float64)
    x = torch.randn(200, 12, generator=dice, dtype=torch.float64)
    x[:, 0] += x[:, 11]
    kept = torch.arange(8)
    owner = torch.arange(8) // 2
    found = factors(weight, x.T @ x / 200, kept, owner, 1e-12, 10.0)
    design = torch.stack([(x[:, kept[owner == u]] @ weight[:, kept[owner == u]].T).flatten() for u in range(4)], 1)
    wanted = torch.linalg.lstsq(design, (x @ weight.T).flatten()[:, None]).solution[:, 0]
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.equal(factors(weight, x.T @ x / 200, kept, owner, 1e-12, 0.9), torch.ones(4, dtype=torch.float64))


def test_the_exact_metric_is_the_condition_number_without_the_unit():
    made = stage("importance=comp:ratio=0.5,metric=kappa_exact,unit=channel,ridge=1e-3")
    scores = made.problem.unit_scores["layers.0.mlp"]
    _, inputs = next(calibrate.blocks(small_model(), text(), ["inputs"]))
    down = inputs["mlp.down_proj"]
    a = rows(small_model().layers[0].mlp.down_proj.weight.detach(), down.square_K / down.tokens)
    eps = 1e-3 * float((a.T @ a).diagonal().mean())
    kappa = lambda m: (torch.linalg.svdvals(m)[0] ** 2 + eps) / (torch.linalg.svdvals(m)[-1] ** 2 + eps)
    for unit in (0, 17, 63):
        rest = torch.cat((a[:unit], a[unit + 1:]))
        assert float(scores[unit]) == pytest.approx(float((kappa(rest) / kappa(a)).log()), abs=1e-6)
    cheap = stage("importance=comp:ratio=0.5,unit=channel").problem.unit_scores["layers.0.mlp"]
    energy = stage("importance=comp:ratio=0.5,metric=energy,unit=channel").problem.unit_scores["layers.0.mlp"]
    assert float(energy.sum()) == pytest.approx(1) and not torch.equal(cheap.argsort(), energy.argsort())


def test_drawn_scores_are_the_same_for_a_seed_and_differ_between_groups():
    first, again = (stage("importance=comp:ratio=0.5,metric=random,unit=channel").problem.unit_scores for _ in range(2))
    assert torch.equal(first["layers.0.mlp"], again["layers.0.mlp"])
    assert not torch.equal(first["layers.0.mlp"], first["layers.1.mlp"])


def test_blocks_go_in_the_order_in_which_they_are_scored_again():
    model = small_model(layers=5)
    made = stage("comp:ratio=0.5,phi=1", model)
    levels = made.allocate().levels
    gone = [i for i in range(5) if not levels[f"layers.{i}.mlp"] and not levels[f"layers.{i}.self_attn"]]
    left = list(range(5))
    order = []
    for _ in gone:
        scores = calibrate.block_scores(model, text(), "cosine", left)
        order.append(left.pop(scores.index(min(scores))))
    assert sorted(order) == gone and len(gone) == 2
    flat = stage("comp:ratio=0.5,phi=0", model).allocate().levels
    assert all(flat.values()) and compress(model, ["importance=comp:ratio=0.5,unit=width + uniform"], text(),
                                           dry_run=True).allocations[0].levels == flat


def test_of_several_shares_the_best_measured_is_taken_and_cut_as_it_is_masked():
    model = small_model(layers=4)
    made = stage("comp:ratio=0.5,phi=0+0.5+1", model)
    found = made.allocate()
    assert found.notes["evaluations"] == len(set(found.notes["blocks_gone"])) == 3
    best = found.notes["losses"].index(min(found.notes["losses"]))
    alone = stage(f"comp:ratio=0.5,phi={(0, 0.5, 1)[best]}", model).allocate()
    assert alone.levels == found.levels and found.notes["search_tokens"] > 0
    done = made.masked(found.levels)
    masked = logits(made.work)
    assert (masked - logits(finished(made.work, done))).abs().max() < 1e-9
