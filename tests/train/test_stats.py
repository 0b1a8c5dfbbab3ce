"""The calibration walk against statistics taken directly, and the Fisher information against one gradient after the other."""

import dataclasses

import numpy as np
import pytest
import torch

from lithe.errors import UnsupportedError, UsageError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.linear import PackedLinear
from lithe.train.feed import Feed
from lithe.train.loss import next_token
from lithe.train.stats import fisher, walk
from lithe.train.text import of_ids

SMALL = Config(vocab=64, width=16, layers=3, heads=2, kv_heads=1, ffn=32, context=32, tied=True, embed_scale=4.0)


@pytest.fixture(scope="module")
def examples():
    dice = np.random.default_rng(0)
    return of_ids((dice.integers(0, 64, n), [True] * n) for n in dice.integers(3, 30, 12))


@pytest.fixture
def model():
    return Decoder(SMALL).init(0).double().eval()


def direct(model, batches, names):
    """What whole passes feed into the sites: all inputs that are no padding, [tokens, K]."""
    seen = {name: [] for name in names}
    for batch in batches:
        real = batch["docs_BT"] >= 0 if "docs_BT" in batch else torch.ones_like(batch["ids_BT"], dtype=torch.bool)
        hooks = [model.get_submodule(name).register_forward_pre_hook(lambda _, x, n=name, r=real: seen[n].append(x[0][r]))
                 for name in names]
        with torch.no_grad():
            model(batch["ids_BT"], **{k: batch[k] for k in ("docs_BT", "pos_BT") if k in batch})
        [hook.remove() for hook in hooks]
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_the_walk_sees_what_whole_passes_feed_into_each_site(model, examples):
    batches = Feed(examples=examples, tokens=90, context=30)(0) + Feed(examples=examples, tokens=90, context=30)(1)
    names = [f"layers.{i}.{part}" for i in range(3) for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")]
    truth = direct(model, batches, names)
    before = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    for number, found in walk(model, batches, dtype=torch.float64):
        assert len(found) == 7
        for name in (n for n in names if n.startswith(f"layers.{number}.")):
            x, inputs = truth[name], found[name.split(".", 2)[2]]
            assert inputs.tokens == len(x)
            for ours, theirs in [(inputs.second_moment_KK, x.T @ x / len(x)), (inputs.norm_K, x.norm(dim=0)),
                                 (inputs.mean_K, x.mean(0)), (inputs.abs_K, x.abs().sum(0)), (inputs.most_K, x.abs().amax(0)),
                                 (inputs.variance_K, x.var(0, unbiased=False))]:
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert before == {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}


def test_padding_is_not_counted(model, examples):
    padded = Feed(examples=examples, tokens=90, context=30, packing=False)(0)
    packed = Feed(examples=examples, tokens=90, context=30)(0)
    for (_, ours), (_, theirs) in zip(walk(model, padded), walk(model, packed), strict=True):
        for name, inputs in ours.items():
            assert inputs.tokens == theirs[name].tokens < sum(b["ids_BT"].numel() for b in padded)
            torch.testing.assert_close(inputs.outer_KK, theirs[name].outer_KK, rtol=1e-4, atol=1e-5)


def test_later_blocks_read_what_changed_blocks_give(model, examples):
    batches = Feed(examples=examples, tokens=90, context=30)(0)
    found = {}
    for number, inputs in walk(model, batches, ["mlp.up_proj"], moments=False, dtype=torch.float64):
        found[number] = inputs["mlp.up_proj"].sum_K
        if number == 0:
            with torch.no_grad():
                model.layers[0].mlp.down_proj.weight.zero_()
    truth = direct(model, batches, ["layers.1.mlp.up_proj"])["layers.1.mlp.up_proj"]  # of the changed model
    torch.testing.assert_close(found[1], truth.sum(0))


def test_experts_are_walked_and_padding_among_them_refused(examples):
    config = dataclasses.replace(SMALL, experts=4, experts_per_token=2, expert_ffn=8)
    model = Decoder(config).init(0).double().eval()
    batches = Feed(examples=of_ids([examples[0], examples[0]]), tokens=90, context=30, packing=False)(0)
    _, found = next(walk(model, batches))
    tokens = batches[0]["ids_BT"].numel()
    assert sum(inputs.tokens for name, inputs in found.items() if name.endswith("up_proj")) == 2 * tokens
    with pytest.raises(UnsupportedError, match="experts choose their tokens"):
        list(walk(model, Feed(examples=examples, tokens=90, context=30, packing=False)(0)))


def test_the_fisher_information_is_the_mean_of_squared_gradients(model, examples):
    batches = [Feed(examples=of_ids([example]), tokens=90, context=30, packing=False)(0)[0] for example in examples]
    sites = model.sites("layers.*.mlp.down_proj") + model.sites("layers.*.self_attn.q_proj")
    model.norm.weight.requires_grad_(False)
    found = fisher(model, batches, sites)
    assert not model.norm.weight.requires_grad and sites[0].module.weight.requires_grad
    assert all(weight.grad is None for weight in model.parameters())
    for site in sites:
        total = torch.zeros_like(site.module.weight)
        for batch in batches:
            model.zero_grad()
            next_token(model, batch)[0].backward()
            total += site.module.weight.grad.square()
        torch.testing.assert_close(found[site.name], total / len(batches), rtol=1e-9, atol=1e-15)


def test_what_cannot_be_walked_is_told(model, examples):
    batches = Feed(examples=examples, tokens=90, context=30, packing=False)(0)
    with pytest.raises(UsageError, match="no linear site of any block matches"):
        list(walk(model, batches, ["mlp.gone"]))
    sites = model.sites("layers.*.mlp.down_proj")
    with pytest.raises(UsageError, match="example by example"):
        fisher(model, batches, sites)
    with pytest.raises(UsageError, match="not asked for second moments"):
        _ = next(walk(model, batches, moments=False))[1]["mlp.up_proj"].second_moment_KK
    sites[0].swap(PackedLinear.of(sites[0].module.float(), "int8"))
    with pytest.raises(UnsupportedError, match="no gradient"):
        fisher(model, [], sites)
