"""Every draft that tells its laws under every policy: the output stays the target's. Axes: V vocabulary."""

import pytest
import torch

from lithe import registry
from lithe.contracts import draft as contract
from lithe.contracts.small import small_model
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.ops.tree import Tree
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

DRAFTS = [entry for entry in registry.entries("decode", "draft") if entry.card.laws]
TREES = registry.entries("decode", "tree")
PROMPTS = contract.PROMPTS[1:4]


def shaped(draft, tree, target):
    own = ",".join(f"{name}={value}" for name, value in contract.modest(tree, 5).items())
    return plan(target, draft=contract.suited(draft, target), tree=":".join(filter(None, [tree.reference, own])))


@pytest.mark.parametrize("tree", TREES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("draft", DRAFTS, ids=lambda entry: entry.name)
def test_greedy_text_is_plain_decodings(draft, tree):
    target = small_model()
    made = shaped(draft, tree, target)
    assert contract.texts(made, PROMPTS, 12) == contract.texts(plan(target), PROMPTS, 12)
    assert contract.texts(made, PROMPTS[1:2], 12) == contract.texts(plan(target), PROMPTS[1:2], 12)


@pytest.mark.parametrize("draft", [d for d in DRAFTS if d.card.trains], ids=lambda entry: entry.name)
def test_sampled_text_has_the_targets_law(draft):
    """Counted in the loop; and the laws on record are those drawn from, else a rule built on them would bend the law."""
    target, law = small_model(vocab=5, context=16, scale=1.0), Law.of(temperature=0.9)
    tree = next(entry for entry in TREES if entry.card.emits == ("wor",))
    made, prompt = shaped(draft, tree, target), [1, 2, 3, 1, 2, 4, 1, 2]
    counts_VV = torch.zeros(5, 5, dtype=torch.float64)
    for start in range(0, 1000, 500):
        batch = [Sequence(prompt, limit=2, context=16, law=law, seed=start + i) for i in range(500)]
        list(run(made, batch))
        for sequence in batch:
            counts_VV[tuple(sequence.tokens)] += 1
    assert contract.chi_squared(counts_VV, contract.joint_law(target, prompt, law)) < 77


@pytest.mark.parametrize("draft", DRAFTS, ids=lambda entry: entry.name)
def test_a_law_is_the_same_whenever_it_is_asked_for(draft):
    """Node by node, as a heap asks, or level by level, as a beam does; and the path to a node has its say."""
    said = []
    for turns in ([[0], [1], [2], [4], [3]], [[0], [1, 2], [3, 4]]):
        made, sequence = shaped(draft, TREES[0], small_model()), Sequence(PROMPTS[0], limit=9, context=64)
        with torch.inference_mode():
            step(made, [sequence])
            trees, laws = [Tree([sequence.ids[-1], 3, 4, 5, 5], [-1, 0, 0, 1, 2])], {}
            for wanted in turns:
                laws |= dict(zip(wanted, made.draft.draft.laws([sequence], trees, [wanted])[0], strict=True))
        said.append(laws)
    assert all(torch.allclose(said[0][node], said[1][node], atol=1e-9) for node in range(5))
    assert not torch.allclose(said[0][0], said[0][3], atol=1e-3)
