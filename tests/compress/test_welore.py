"""WeLore: one threshold for all singular values, matrices that stay dense, and tuning of the pairs alone."""

import pytest
import torch

from lithe.compress.api import compress as saved
from lithe.compress.pairs import factored
from lithe.compress.recover.welore import drawn
from lithe.compress.recovery import recover
from lithe.compress.run import Stage, compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model
from lithe.errors import UnsupportedError
from lithe.model.load import load


def uneven():
    """The small model, its attention with few large singular values."""
    model = copied(small_model())
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            u, s, v = torch.linalg.svd(module.weight.detach(), full_matrices=False)
            falling = torch.arange(len(s), dtype=s.dtype).mul(-1.0 if "attn" in name else -0.02).exp()
            module.weight.data = u * (s[0] * falling) @ v
    return model


def stage(spec, model):
    return Stage(copied(model), parse(spec), text(), 0, lambda *_: None, None, 0, 8)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_one_threshold_meets_the_share_of_ranks_and_decides_who_stays_dense(share):
    made = stage(f"welore:ratio={share},by=ranks", small_model())
    found = made.allocate()
    tau, scores = found.notes["tau"], made.problem.unit_scores
    assert found.notes["ranks_below"] == pytest.approx(share, abs=0.005)
    for group in made.groups:
        kept = int((scores[group.name] >= tau).sum())
        gone = 1 - kept / group.units
        assert found.levels[group.name] == (kept if gone > 0.4999 else None)
        assert float(scores[group.name].min()) == 0 and float(scores[group.name].max()) == 1
    assert found.cost == found.budget


def test_bytes_are_met_by_the_least_threshold_that_does():
    made = stage("welore:ratio=0.2", uneven())
    found = made.allocate()
    method = made.step.allocate
    below = made.problem.cost(method._plan(made.problem, made.problem.unit_scores, found.notes["tau"] - 1e-6))
    assert found.cost <= found.budget < below
    assert {name.split(".")[2] for name, level in found.levels.items() if level is not None} == {"self_attn"}
    assert stage("welore:ratio=0.2,min_ratio=0.9", uneven()).allocate().levels != found.levels


def test_what_the_threshold_leaves_goes_to_pairs_until_files_take_what_was_asked(tmp_path):
    model = load("zoo:tiny-draft", dtype="float32", fast=False)
    found = saved(model, ["welore:ratio=0.4"], calibration=text(), out=tmp_path / "m")
    (plan,) = found.allocations
    sides = max(sum(pair.weight.shape) for pair in factored(found.model).values())
    assert plan.notes["tau_of_pairs"] < plan.notes["tau"]
    assert 0 <= plan.budget - plan.cost <= 4 * sides  # a rank of one pair
    whole = sum(path.stat().st_size for path in model.folder.glob("*.safetensors"))
    taken = sum(path.stat().st_size for path in (tmp_path / "m").glob("*.safetensors"))
    assert taken == pytest.approx(whole - plan.full + plan.budget, rel=0.01)


def test_what_a_pair_loses_is_the_singular_values_cut_off():
    model = uneven()
    work = compress(model, ["welore:ratio=0.2"], text()).model
    for site, pair in factored(work).items():
        weight = model.get_submodule(site).weight.detach()
        lost = torch.linalg.svdvals(weight)[pair.rank:].square().sum().sqrt()
        assert float((pair.weight - weight).norm().detach()) == pytest.approx(float(lost), rel=1e-9)
        assert pair.rank < min(weight.shape) / 2 and pair.rank * sum(weight.shape) < weight.numel()


def test_only_pairs_are_tuned_and_the_control_tunes_no_more_values():
    work = compress(uneven(), ["welore:ratio=0.2"], text()).model
    before, values = {name: w.clone() for name, w in work.named_parameters()}, 0
    for tuned in ("pairs", "dense", "few"):
        step = parse(f"recover=welore:steps=3,rate=1e-2,tuned={tuned}")
        after, note = recover(copied(work), uneven(), step, text(), seed=0, kept=None, number=0)
        moved = {name for name, w in after.named_parameters() if not torch.equal(w, before[name])}
        pairs = {f"{site}.{half}.weight" for site in factored(after) for half in "ab"}
        assert moved and (moved == pairs if tuned == "pairs" else moved <= pairs if tuned == "few" else not moved & pairs)
        count = sum(before[name].numel() for name in moved)
        assert note["trained"] == count and (tuned == "pairs" or 0 < count <= values)
        values = values or count
        assert note["optimizer_bytes"] == 8 * values < note["optimizer_bytes_of_all"]


def test_whole_matrices_are_drawn_up_to_a_number_of_values():
    weights = [[torch.nn.Parameter(torch.zeros(size))] for size in (5, 9, 2, 4)]
    taken = [tuple(w.numel() for w in drawn(weights, 11, seed)) for seed in range(8)]
    assert all(5 <= sum(sizes) <= 11 for sizes in taken) and len(set(taken)) > 1
    assert len(drawn(weights, 20, 0)) == 4 and drawn(weights, 1, 0) == []


def test_shares_of_zeros_have_no_threshold():
    with pytest.raises(UnsupportedError, match="not on entry"):
        stage("wanda:ratio=0.5 + allocate=welore", small_model()).allocate()


def test_nothing_is_done_to_pairs_and_what_stayed_dense_can_be_rounded():
    with pytest.raises(UnsupportedError, match="pair of thinner matrices already"):
        compress(uneven(), ["welore:ratio=0.2", "wanda:ratio=0.5"], text())
    work = compress(uneven(), ["welore:ratio=0.2", "rtn:bits=8,sites=mlp.*"], text()).model
    assert {name.split(".")[2] for name in factored(work)} == {"self_attn"}
