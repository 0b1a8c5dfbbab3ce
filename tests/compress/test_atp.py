"""ATP: decisions that get a gradient, the size asked for, and parts that do without what goes."""

import pytest
import torch

from lithe.compress.fitness import nll
from lithe.compress.groups import find
from lithe.compress.recovery import recover
from lithe.compress.run import compress
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model


def tuned(knobs, model=None):
    """The smaller model, the method, and the masked model's logits just before it is cut."""
    dense = model or small_model(layers=3)
    step = parse(f"atp:{knobs}")
    work, method = copied(dense), step.recover
    seen, finish = {}, method.finish

    def watched(work):
        method.final = method.final or method._final()
        method.put(method.final, held=False)
        seen["masked"], seen["leftover"] = logits(work).clone(), method.leftover()
        return finish(work)

    method.finish = watched
    done, note = recover(work, dense, step, text(), seed=0, kept=None, number=0)
    return done, method, seen, note


SHORT = "ratio=0.4,steps=120,rate=1e-2"


@pytest.fixture(scope="module")
def both():
    return {aware: tuned(f"{SHORT},aware={aware}") for aware in ("true", "false")}


def test_it_ends_at_the_size_asked_for(both):
    done = both["true"][0]
    size = lambda model: sum(group.weights for group in find(model, "width"))
    left = size(done) / size(small_model(layers=3))
    assert left <= 0.6 and left > 0.6 - 0.05  # whole steps of 8 channels in so small a model


def test_cut_it_computes_what_it_did_masked_and_without_the_lasso_it_jumps(both):
    jump = {aware: float((logits(done) - seen["masked"]).abs().max()) for aware, (done, _, seen, _) in both.items()}
    assert both["true"][2]["leftover"] < 1e-3 < both["false"][2]["leftover"]
    assert jump["true"] < 1e-4 < jump["false"]


def test_it_learns_on_the_way(both):
    bare = compress(small_model(layers=3), ["wanda_sp:ratio=0.4,unit=width"], text()).model
    assert nll(both["true"][0], text()) < nll(bare, text())


def test_decisions_get_a_gradient_and_parts_none_in_their_steps():
    step = parse("atp:ratio=0.4,steps=100")
    work, method = copied(small_model()), step.recover
    weights = method.begin(work, small_model(), text(), 0)
    for weight in weights:
        weight.requires_grad_(True)
    ids = text().batches[0]["ids_BT"]
    for number in (0, 1):
        work.zero_grad(set_to_none=True)
        total, _ = method.loss(work, {"ids_BT": ids, "targets_BT": ids, "step": torch.tensor(number)})
        total.backward()
        moved = {name: sum(float(w.grad.abs().sum()) for w in module.parameters() if w.grad is not None)
                 for name, module in (("decide", method.decide), ("part", method.parts["layers.0.mlp.up_proj"]))}
        assert (moved["decide"] > 0) == (number == 1) and (moved["part"] > 0) == (number == 0)
    assert all(bool(mask.all()) for mask in method.masks(None).values())  # at first everything stays
