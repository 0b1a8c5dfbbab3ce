"""Methods for differences against their papers: laws of chance, closed forms, and PEFT's own functions."""

import pytest
import torch

from lithe import registry
from lithe.contracts.delta import coded, ready
from lithe.tune import coding

DICE = torch.Generator().manual_seed(0)
DELTA = torch.randn(30, 40, generator=DICE) * 1e-3


def through(spec, delta=DELTA, seed=5, name="layers.0.mlp.up_proj.weight"):
    found = registry.parse(f"delta={spec}")
    method = found.entry.module.Method(found.knobs)
    for turn in range(getattr(method, "turns", 0)):
        method.read(name, delta, turn)
    return coding.decode(method.encode(name, delta, torch.Generator().manual_seed(seed)), torch.zeros_like(delta))


@pytest.mark.parametrize(("spec", "p", "q"), [("dare:drop=0.9,values=F32", 0.9, 0.1),
                                              ("darex:drop=0.99,over=5,values=F32", 0.99, 0.05)])
def test_mean_and_variance_are_the_closed_form(spec, p, q):
    """E = d (1-p)/q, Var = d^2 p (1-p) / q^2: with q = 1-p nothing is lost on average, with more the error is smaller."""
    runs = torch.stack([through(spec, seed=seed) for seed in range(300)]).double()
    share, error = (runs.mean(0) / DELTA).mean().item(), (runs - DELTA).square().sum((1, 2)).mean().item()
    sd = (p * (1 - p)) ** 0.5 / q / (300 * DELTA.numel()) ** 0.5
    assert share == pytest.approx((1 - p) / q, abs=4 * sd)
    told = (p * (1 - p) / q**2 + (1 - (1 - p) / q) ** 2) * DELTA.double().square().sum().item()
    assert error == pytest.approx(told, rel=0.05)
    assert q == pytest.approx(1 - p) or error < 0.3 * p / (1 - p) * DELTA.double().square().sum().item()


def test_at_one_the_extreme_form_is_the_plain_one_and_leaves_norms_whole():
    assert torch.equal(through("darex:drop=0.9"), through("dare:drop=0.9"))
    assert torch.allclose(through("darex:drop=0.99", name="model.norm.weight"), DELTA, atol=2e-6)
    assert through("dare:drop=0.99", name="model.norm.weight").count_nonzero() < 50


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_masks_are_pefts(share):
    from peft.utils.merge_utils import prune

    theirs = prune(DELTA, share, "magnitude")
    assert torch.equal(through(f"top_magnitude:share={share},values=F32"), theirs)
    ours = through(f"compeft:share={share},alpha=2")
    assert torch.allclose(ours, theirs.sign() * 2 * DELTA.std(), rtol=1e-6), "signs of the largest, of one size"
    mean = through(f"compeft:share={share},alpha=0")
    assert torch.allclose(mean.abs().max(), theirs.abs()[theirs != 0].mean(), rtol=1e-6)


def test_a_size_for_each_kind_serves_what_differs_in_size():
    """LoRA's two factors, one a thousand times the other: one threshold for all loses all of the smaller."""
    deltas = {"q.lora_A.weight": DELTA, "q.lora_B.weight": 1e-3 * DELTA}
    entry = registry.find("compeft", "delta")
    kept = {}
    for scope in ("all", "kind"):
        method = entry.module.Method(entry.knobs(scope=scope))
        for turn in range(method.turns):
            for name, delta in deltas.items():
                method.read(name, delta, turn)
        kept[scope] = coding.decode(method.encode("q.lora_B.weight", deltas["q.lora_B.weight"], DICE), DELTA).count_nonzero()
    assert kept["all"] == 0 and kept["kind"] == 240


def test_ties_is_pefts():
    from peft.utils.merge_utils import ties

    entry = registry.find("ties", "delta")
    deltas = [DELTA, torch.randn(30, 40, generator=DICE) * 1e-3, -0.7 * DELTA]
    trimmed = [coding.decode(next(iter(coded(ready(entry, {"x": d}, share=0.2), {"x": d}).values())), d) for d in deltas]
    ours = entry.module.Method(entry.knobs()).combine(trimmed, [1.0, 1.0, 1.0])
    assert torch.allclose(ours, ties(deltas, torch.ones(3), density=0.2, majority_sign_method="total"), atol=1e-9)
    assert not torch.allclose(ours, sum(trimmed) / 3, atol=1e-5), "with no conflict this would prove nothing"


def test_adding_a_task_and_taking_it_away_is_nothing():
    method = registry.find("task_arithmetic", "delta").module.Method(None)
    assert not method.combine([DELTA, DELTA], [1.0, -1.0]).any()


def test_levels_code_better_than_sixteen_bits_and_finer_ones_err_less():
    entry, found = registry.find("round_levels", "delta"), {}
    for step in (0.25, 1.0):
        one = ready(entry, {"x": DELTA}, step=step).encode("x", DELTA, DICE)
        error = (coding.decode(one, DELTA) - DELTA).square().mean() / DELTA.square().mean()
        found[step] = error.item(), 8 * len(one.data) / DELTA.numel()
    assert found[0.25][0] < 0.01 < found[1.0][0] < 0.15 and found[1.0][1] < 2.2 < found[0.25][1] < 8


def test_sizes_by_a_rule_reach_as_far_as_the_whole_or_are_the_nearest():
    """The mean of what is kept is nearest the difference; the size that reaches as far along it errs more."""
    near, far = through("compeft:alpha=0"), through("compeft:alpha=-1")
    along = [(found * DELTA).sum() / DELTA.square().sum() for found in (near, far)]
    assert along[1].item() == pytest.approx(1, abs=1e-5) and along[0] < 0.75
    assert (near - DELTA).norm() < (far - DELTA).norm()
