"""PELA: ranks by its formula, and healing by three terms that moves nothing but the pairs."""

import pytest
import torch

from lithe.compress.pairs import factored
from lithe.compress.recovery import recover
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model
from lithe.errors import UsageError
from lithe.model.decoder import ALL
from lithe.train.loss import next_token


def made(spec="pela:ratio=0.5"):
    return compress(small_model(), [spec], text()).model


def step(spec):
    return parse(f"recover=pela:{spec}")


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.6666])
def test_ranks_and_values_are_those_of_the_formula(ratio):
    for site, pair in factored(made(f"pela:ratio={ratio}")).items():
        n, k = small_model().get_submodule(site).weight.shape
        rank = int(n * k * (1 - ratio) / (n + k) + 1e-9)
        assert pair.rank == rank and sum(w.numel() for w in pair.parameters()) == rank * (n + k)
        assert torch.allclose(pair.a.weight.norm(dim=1), pair.b.weight.norm(dim=0))  # the roots on either side


def test_what_is_left_out_stays_and_what_is_small_too():
    assert {site.rpartition(".")[2] for site in factored(made("pela:ratio=0.5,sites=*+!k_proj+!mlp.up_proj"))} == {
        "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"}
    stage = Stage(copied(small_model()), parse("pela:ratio=0.5,least=17"), text(), 0, lambda *_: None, None, 0, 8)
    assert stage.groups and all(group.units >= 17 for group in stage.groups)  # keys and values have 16 outputs


def test_a_share_that_one_layer_cannot_meet_is_refused():
    with pytest.raises(UsageError, match="cannot be met"):
        made("pela:ratio=0.97")


def test_the_loss_is_its_three_terms():
    work, batch = made(), {**text().batches[0], "step": torch.tensor(0)}
    batch["targets_BT"] = batch["ids_BT"].roll(-1, 1)
    found = {}
    for name, spec in {"task": "feature=0,norm=0", "feature": "feature=1,norm=0", "norm": "feature=0,each=0"}.items():
        method = step(spec).recover
        method.begin(work, small_model(), text(), 0)
        total, tokens = method.loss(work, batch)
        found[name] = float(total.detach() / tokens)
    task = next_token(work, {name: batch[name] for name in ("ids_BT", "targets_BT")})
    assert found["task"] == pytest.approx(float(task[0].detach() / task[1]))
    taps = [model(batch["ids_BT"], taps=[0, 1], logits=ALL).taps for model in (work, small_model())]
    feature = float(sum((taps[0][i] - taps[1][i]).square().mean() for i in (0, 1)).detach() / 2)
    worst = [float((pair.weight - small_model().get_submodule(site).weight).abs().max().detach())
             for site, pair in factored(work).items()]
    norm = sum((most - 1e-3) ** 2 for most in worst) / len(worst)
    assert found["feature"] - found["task"] == pytest.approx(feature)
    assert found["norm"] - found["task"] == pytest.approx(norm)
    method = step("each=3").recover
    method.begin(work, small_model(), text(), 0)
    turns = [float(method.perturbed(i).detach()) for i in range(14)]  # 14 layers, 3 at a time: all alike often after 14
    assert len(set(turns)) == 14 and sum(turns) / 14 == pytest.approx(norm)


def test_healing_moves_the_pairs_alone_and_lowers_what_it_is_told_to():
    work, method = made("pela:ratio=0.3"), step("steps=20,rate=3e-3,each=0").recover
    method.begin(work, small_model(), text(), 0)
    batches = [{**batch, "targets_BT": batch["ids_BT"].roll(-1, 1), "step": torch.tensor(0)} for batch in text().batches]
    told = lambda: sum(float(method.loss(work, batch)[0].detach()) for batch in batches)
    before, start = {name: w.clone() for name, w in work.named_parameters()}, told()
    healed, note = recover(work, small_model(), step("steps=20,rate=3e-3,each=0"), text(), seed=0, kept=None, number=0)
    moved = {name for name, w in healed.named_parameters() if not torch.equal(w, before[name])}
    assert moved == {f"{site}.{half}.weight" for site in factored(healed) for half in "ab"}
    assert note["trained"] == sum(before[name].numel() for name in moved)
    assert told() < start


def test_random_pairs_are_as_large_and_drawn_by_the_seed():
    one, two = made("pela:ratio=0.3,start=random"), made("pela:ratio=0.3,start=random")
    for (site, a), b in zip(factored(one).items(), factored(two).values(), strict=True):
        weight = small_model().get_submodule(site).weight
        assert torch.equal(a.weight, b.weight) and 0.5 < float((a.weight.norm() / weight.norm()).detach()) < 2
        assert float((a.weight - weight).norm().detach()) > float(weight.norm().detach())


def test_a_model_without_pairs_is_refused():
    with pytest.raises(UsageError, match="no low-rank layers"):
        recover(copied(small_model()), small_model(), step("steps=1"), text(), seed=0, kept=None, number=0)
