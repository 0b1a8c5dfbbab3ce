"""Medusa: what its heads learn is what they are asked, each its own place ahead."""

import pytest
import torch

from lithe import registry
from lithe.errors import UnsupportedError, UsageError
from lithe.train import fitted as folder
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

ONE = (1,)  # one follower each: everything ahead is certain
SPEC = "medusa:depth=3,rate=0.02"
method = registry.find("medusa").module


def heads(**knobs):
    return method.Heads(method.Knobs(**knobs), bigrams(*ONE))


def test_head_i_foretells_the_ith_token_after_the_root():
    ids_BT = torch.arange(10)[None]
    batch = {"ids_BT": ids_BT, "tap:final": torch.zeros(1, 10, 32)}
    for i, (logits_BTV, targets_BT) in enumerate(heads(depth=3).guesses(batch), start=1):
        assert targets_BT[0].tolist() == [t + 1 + i for t in range(9 - i)]  # row t, root t + 1
        assert logits_BTV.shape[:2] == targets_BT.shape


def test_fitted_heads_guess_all_that_is_certain_and_shuffled_ones_nothing():
    heads_folder, rates = fitted(SPEC, *ONE)
    assert all(row[0] > 0.99 for row in rates)
    made = drafting(f"medusa:heads={heads_folder},nodes=3", *ONE)
    assert tokens_per_pass(made, 0.0) > 3.5  # 4 but for the first pass, which knows no state, and the ends
    draft = made.draft
    draft.heads = torch.nn.ModuleList([*draft.heads[1:], draft.heads[0]])
    assert tokens_per_pass(made, 0.0) < 1.1


def test_untrained_heads_begin_as_the_targets_own():
    head = heads(depth=1).heads[0].double()
    model = bigrams(*ONE)
    h_NC = model(torch.arange(32)[None], taps=("final",)).taps["final"][0]
    assert torch.allclose(head(h_NC), model.unembed(h_NC))


def test_the_targets_matrix_for_all_heads_leaves_only_the_blocks_to_learn():
    count = lambda module: sum(weight.numel() for weight in module.parameters())
    assert count(heads(depth=2)) == 2 * (32 * 32 + 32 + 32 * 32)
    assert count(heads(depth=2, own=False)) == 2 * (32 * 32 + 32)


def test_without_weights_it_says_how_to_make_them():
    with pytest.raises(UsageError, match="lithe fit MODEL --method medusa"):
        drafting("medusa", *ONE)


def test_of_several_shipped_folders_that_of_the_asked_shape_is_found(tmp_path, monkeypatch):
    model = bigrams(*ONE)
    for name, depth in (("medusa", 2), ("medusa-deep", 3)):
        folder.save(tmp_path / name, "medusa", method.Knobs(depth=depth), model, heads(depth=depth))
    monkeypatch.setattr(folder, "SHIPPED", tmp_path)
    assert [len(method.Method(method.Knobs(**said), model).heads) for said in ({}, {"depth": 3})] == [2, 3]
    with pytest.raises(UnsupportedError, match="depth"):
        method.Method(method.Knobs(depth=4), model)
