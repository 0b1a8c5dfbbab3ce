"""Rows that nobody may see: true rows are what they are without them, and nothing of them is kept."""

import pytest
import torch

import lithe
from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode import ghosts
from lithe.decode.lanes import Lanes
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import LitheError
from lithe.model.cache import PlainCache
from lithe.model.mask import Tree as TreeMask, ancestors
from lithe.ops.tree import Ghost, Tree
from lithe.sampling.sequence import Sequence

HAUNTED = [entry.name for entry in registry.entries("decode", "draft") if "ghosts" in entry.card.needs and entry.card.trains]


def haunted() -> Tree:
    tree = Tree([5, 6, 7, 8], [-1, 0, 0, 1])
    tree.haunt(0, [0, 1])
    tree.haunt(3, [0, 1, 2])
    return tree


class Ghosts:
    """Rows that say something loud, so that whoever sees them is changed."""

    def __init__(self, enters: int):
        self.enters = enters

    def ghosts(self, states_GC, which):
        return 9.0 + states_GC * torch.tensor(which, dtype=states_GC.dtype)[:, None]


def passes(model, draft, trees, mask=None):
    """Logits of a haunted pass and of the pass without ghosts, behind the same prompts."""
    lanes = Lanes(model)
    lanes.sync([Sequence([1, 2, 3], limit=9, context=64), Sequence([4, 9, 4, 9, 1], limit=9, context=64)])
    lanes.prefill()
    bare = lanes.run([tree.tokens for tree in trees], depths=[tree.depths for tree in trees],
                     mask=TreeMask([tree.parents for tree in trees]), logits="all").scores
    out = ghosts.haunted(lanes, draft, trees, ("final",))
    return (out.scores, out.taps), bare, lanes


@pytest.mark.parametrize("enters", [0, 1])
def test_true_rows_are_bitwise_what_they_are_without_ghosts(enters):
    """On the fast path; the second sequence of the batch has none of its own, and padding in their place."""
    model = lithe.load("zoo:tiny-draft")
    trees = [haunted(), Tree([5, 6], [-1, 0])]
    (logits, taps), bare, _ = passes(model, Ghosts(enters), trees)
    assert torch.equal(logits[0, :4], bare[0, :4]) and torch.equal(logits[1, :2], bare[1, :2])
    assert logits.shape[1] == 9 and torch.equal(model.unembed(taps["final"][0, :4]), logits[0, :4])


def test_a_mask_that_shows_ghosts_changes_true_rows(monkeypatch):
    """The bug this guards against, seeded: node 3 made to see a ghost of the root."""
    model, trees = small_model(), [haunted(), haunted()]
    (logits, _), bare, _ = passes(model, Ghosts(0), trees)
    assert torch.allclose(logits[:, :4], bare[:, :4], atol=1e-12)


    def leaky(parents):
        seen = torch.stack([ancestors(p, len(p)) for p in parents])
        seen[:, 3, 4:5] = True
        return seen

    monkeypatch.setattr(ghosts, "TreeMask", leaky)
    (logits, _), _, _ = passes(model, Ghosts(0), trees)
    assert not torch.allclose(logits[:, 3], bare[:, 3], atol=1e-3) and torch.allclose(logits[:, :3], bare[:, :3], atol=1e-12)


def test_ghosts_see_their_node_and_what_it_sees_and_those_above():
    """A chain of ghosts that hold tokens' embeddings says what those tokens would."""
    model = small_model()
    said = Ghosts(0)
    said.ghosts = lambda states_GC, which: model.embed(torch.tensor(which))
    tree = Tree([5, 6, 7], [-1, 0, 0])
    tree.haunt(2, [11, 12])
    (logits, _), _, _ = passes(model, said, [tree, tree])
    whole = model(torch.tensor([[1, 2, 5, 7, 11, 12]]), logits="all").scores[0, -3:]
    assert torch.allclose(logits[0, [2, 3, 4]], whole, atol=1e-12)


@pytest.mark.parametrize("name", HAUNTED)
def test_after_every_round_the_cache_is_that_of_a_fresh_prefill(name):
    model = small_model()
    made = plan(model, draft=f"{name}:heads=fresh")
    batch = [Sequence([1, 2], limit=20, context=64), Sequence([7] * 5, limit=30, context=64)]
    rows = 0
    for step in run(made, batch):
        lanes, rows = made.lanes, max(rows, step.nodes)
        for lane, held in enumerate(lanes.held):
            model(torch.tensor([held.ids[: lanes.cache.lengths[lane]]]), cache=(fresh := PlainCache.like(model)), logits="none")
            for layer in range(2):
                kept = lanes.cache.k[layer][lane, :, : lanes.cache.lengths[lane]]
                assert torch.allclose(kept, fresh.k[layer][0, :, : lanes.cache.lengths[lane]], atol=1e-9)
    assert rows > 8


def test_cutting_a_tree_keeps_ghosts_whose_place_is_left():
    tree = haunted()
    assert tree.rows() == ([-1, 0, 0, 1, 0, 4, 3, 6, 7], [0, 1, 1, 2, 1, 2, 3, 4, 5])
    shallow = tree.cut(depth=3, nodes=99)
    assert shallow.ghosts == [Ghost(0, -1, 0), Ghost(0, 0, 1), Ghost(3, -1, 0)] and shallow.tokens == tree.tokens
    assert tree.cut(depth=9, nodes=7).ghosts == tree.ghosts[:3]
    assert tree.cut(depth=1, nodes=99).ghosts == [Ghost(0, -1, 0)]
    assert tree.cut(depth=9, nodes=3).ghosts == [] and tree.cut(depth=9, nodes=99) == tree


@pytest.mark.skipif(not HAUNTED, reason="no draft has ghosts")
@pytest.mark.parametrize("ghost", [Ghost(4, -1, 0), Ghost(-1, -1, 0), Ghost(0, 0, 0), Ghost(0, 1, 0)], ids=str)
def test_a_ghost_that_hangs_on_nothing_is_told(ghost):
    made = plan(small_model(), draft=f"{HAUNTED[0]}:heads=fresh")

    def propose(sequences, room):
        return [Tree([s.ids[-1], 3, 4], [-1, 0, 1], ghosts=[ghost]) for s in sequences]

    made.draft.propose = propose
    with pytest.raises(LitheError, match="a ghost that hangs on no row before it"):
        list(run(made, [Sequence([1], limit=9, context=64)]))
