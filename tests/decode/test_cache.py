"""The cache after any history equals a fresh prefill of what was committed."""

import torch
from hypothesis import given, settings, strategies as st

from lithe.contracts.small import small_model
from lithe.decode.lanes import Lanes
from lithe.model.cache import PlainCache
from lithe.model.mask import Tree as TreeMask
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence


@st.composite
def histories(draw):
    """Rounds of (tree shape, accepted node) for two sequences of unequal length."""
    prompts = [draw(st.lists(st.integers(0, 31), min_size=1, max_size=9)) for _ in range(2)]
    rounds = []
    for _ in range(draw(st.integers(1, 4))):
        trees = []
        for _ in range(2):
            size = draw(st.integers(0, 6))
            parents = [-1, *(draw(st.integers(0, i)) for i in range(size))]
            tokens = [draw(st.integers(0, 31)) for _ in parents]
            trees.append((tokens, parents, draw(st.integers(0, size)), draw(st.integers(0, 31))))
        rounds.append(trees)
    return prompts, rounds


@settings(max_examples=40, deadline=None)
@given(histories())
def test_cache_equals_a_fresh_prefill_after_any_history(history):
    prompts, rounds = history
    model = small_model()
    cache = PlainCache.like(model, batch=2)
    ids = [list(p) for p in prompts]
    with torch.inference_mode():
        width = max(len(p) - 1 for p in ids)
        if width:
            rows = [p[:-1] + [0] * (width - len(p) + 1) for p in ids]
            model(torch.tensor(rows), cache=cache, logits="none")
            cache.commit([len(p) - 1 for p in ids])
        for trees in rounds:
            drafts = [Tree([text[-1], *tokens[1:]], parents) for text, (tokens, parents, _, _) in zip(ids, trees, strict=True)]
            n = max(map(len, drafts))
            rows = [d.tokens + [0] * (n - len(d)) for d in drafts]
            depth = [d.depths + [0] * (n - len(d)) for d in drafts]
            pos = torch.tensor([[length + step for step in row] for length, row in zip(cache.lengths, depth, strict=True)])
            model(torch.tensor(rows), pos_BT=pos, mask=TreeMask([d.parents for d in drafts]), cache=cache, logits="none")
            paths = [d.path(node) for d, (_, _, node, _) in zip(drafts, trees, strict=True)]
            cache.commit([[0, *path] for path in paths])
            for text, draft, path, (_, _, _, new) in zip(ids, drafts, paths, trees, strict=True):
                text += [draft.tokens[node] for node in path] + [new]
        for b, text in enumerate(ids):
            assert cache.lengths[b] == len(text) - 1
            fresh = PlainCache.like(model)
            if len(text) > 1:
                model(torch.tensor([text[:-1]]), cache=fresh, logits="none")
            for layer in range(model.config.layers):
                for mine, theirs in ((cache.k, fresh.k), (cache.v, fresh.v)):
                    kept = slice(0, len(text) - 1)
                    torch.testing.assert_close(mine[layer][b, :, kept], theirs[layer][0, :, kept], atol=1e-12, rtol=0)


def test_lanes_follow_a_changing_batch_and_a_rewritten_text():
    model = small_model()
    lanes = Lanes(model)

    a, b, c = (Sequence(ids, limit=9, context=64) for ids in ([1, 2, 3, 4], [5, 6], [7, 8, 9]))
    for group in ([a, b], [b, a, c], [c], [a, c]):
        if group == [c]:
            c.ids = [7, 9, 9, 1, 2]  # rolled back behind its second token, then grown
        lanes.sync(group)
        lanes.prefill()
        assert lanes.cache.lengths == [len(s.ids) - 1 for s in group]
        out = lanes.run([[s.ids[-1]] for s in group]).logits[:, 0]
        for row, s in zip(out, group, strict=True):
            torch.testing.assert_close(row, model(torch.tensor([s.ids])).logits[0, -1], atol=1e-12, rtol=0)


def test_fork_is_independent():
    model = small_model()
    cache = PlainCache.like(model)
    model(torch.tensor([[1, 2, 3]]), cache=cache)
    cache.commit([3])
    twin = cache.fork([0])
    before = cache.k[0].clone()
    model(torch.tensor([[9, 9]]), cache=twin)
    twin.commit([2])
    assert cache.lengths == [3] and twin.lengths == [5]
    assert torch.equal(cache.k[0], before)


def test_lanes_hold_no_more_than_is_asked_for_and_grow():
    model = small_model(context=4096)
    lanes = Lanes(model)
    short, long = Sequence([1, 2, 3], limit=10, context=4096), Sequence(list(range(30)) * 30, limit=100, context=4096)
    for sequence in (short, long):
        lanes.sync([short, long] if sequence is long else [short])
        lanes.prefill()
    assert lanes.cache.capacity < 1400
    for b, sequence in enumerate((short, long)):
        out = lanes.run([[s.ids[-1]] for s in (short, long)]).scores[b, 0]
        torch.testing.assert_close(out, model(torch.tensor([sequence.ids])).scores[0, -1], atol=1e-10, rtol=0)
