"""A draft inside a draft: the chain the small model says alone, in fewer passes, with the laws it was drawn from."""

import pytest
import torch

from lithe.contracts.small import small_folder, small_model
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.errors import LitheError
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

SMALL = f"model={small_folder()}"
INSIDE = ("", ",draft=prompt_lookup", ",draft=token_recycling(nodes=6)", ",draft=ppd(heads=fresh)", ",draft=jacobi(tokens=3)")


def drafted(spec, rounds=6, **law):
    """Trees of every round for two sequences, as (ids, tree)."""
    made, seen = plan(small_model(), draft=spec), []
    propose = made.draft.propose

    def watched(sequences, room):
        trees = propose(sequences, room)
        seen.extend((list(s.ids), tree) for s, tree in zip(sequences, trees, strict=True))
        return trees

    made.draft.propose = watched
    batch = [Sequence(p, limit=30, context=64, law=Law.of(**law), seed=3) for p in ([1, 2, 3, 1, 2], [7, 7, 7])]
    for _ in range(rounds):
        step(made, batch)
    return made, seen


@pytest.mark.parametrize("inside", INSIDE)
def test_greedily_it_says_what_the_small_model_says_alone(inside):
    _, seen = drafted(f"cascade:{SMALL},tokens=5{inside}")
    _, alone = drafted(f"draft_model:{SMALL},tokens=5")
    assert [(ids, tree.tokens) for ids, tree in seen] == [(ids, tree.tokens) for ids, tree in alone]
    assert any(len(tree) == 6 for _, tree in seen)


@pytest.mark.parametrize("inside", INSIDE[1:4])
def test_every_law_is_the_small_models_after_the_path_to_its_node(inside):
    made, seen = drafted(f"cascade:{SMALL},tokens=4{inside}", temperature=0.8)
    small, law = made.draft.second.model, Law.of(temperature=0.8)
    for ids, tree in seen:
        assert sorted(tree.laws) == list(range(len(tree) - 1))
        whole = torch.tensor([ids[:-1] + tree.tokens])
        laws_NV = law(small(whole, logits="all").logits[0, len(ids) - 1 :]).double().softmax(-1)
        assert all(torch.allclose(tree.laws[node], laws_NV[node], atol=1e-9) for node in tree.laws)


def test_what_is_inside_saves_passes_of_the_small_model():
    """A draft that is the target itself, inside which a lookup finds its loops; without it a pass a token (the control)."""
    passes = []
    for inside in ("", ",draft=prompt_lookup"):
        made, counted = plan(small_model(), draft=f"cascade:{SMALL},tokens=8{inside}"), []
        lanes = made.draft.inner.lanes
        go = lanes.run
        lanes.run = lambda *args, go=go, counted=counted, **more: counted.append(1) or go(*args, **more)
        list(run(made, [Sequence([3, 4, 5, 3, 4, 5], limit=40, context=64)]))
        passes.append(len(counted))
    assert passes[1] < passes[0]


def test_what_cannot_serve_inside_is_refused():
    two = f"cascade:model={small_folder(layers=2)}"
    for inside, reason in (("eagle(heads=fresh)", "never taken back"), ("kangaroo(heads=fresh)", "never taken back")):
        with pytest.raises(LitheError, match=reason):
            plan(small_model(), draft=f"{two},draft={inside}")
