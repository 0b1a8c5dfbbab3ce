"""A cache after any round equals a fresh prefill of what was committed."""

import torch

from lithe.decode.lanes import Lanes
from lithe.decode.loop import step
from lithe.decode.plan import DecodePlan
from lithe.model.cache import PlainCache
from lithe.sampling.sequence import Sequence

PROMPTS = ([1], [3, 4, 5, 3, 4], list(range(12)))


def fresh(lanes: Lanes, texts: list[list[int]], layers=None) -> None:
    """Each lane's committed slots hold what reading the text anew would write."""
    for b, text in enumerate(texts):
        rows, other = lanes.cache.lengths[b], PlainCache.like(lanes.model)
        if rows:
            lanes.model(torch.tensor([text[:rows]]), cache=other, logits="none")
        for layer in range(lanes.model.config.layers):
            for mine, theirs in ((lanes.cache.k, other.k), (lanes.cache.v, other.v)):
                torch.testing.assert_close(mine[layer][b, :, :rows], theirs[layer][0, :, :rows], atol=1e-10, rtol=0)


def rounds(made: DecodePlan, law=None, limit=20) -> int:
    """Run three ragged sequences and prove the target's cache after every round; how many rounds there were."""
    batch = [Sequence(p, limit=limit, context=64, law=law, seed=i) for i, p in enumerate(PROMPTS)]
    count = 0
    with torch.inference_mode():
        while alive := [s for s in batch if not s.finished]:
            step(made, alive)
            going = [s.finished is None for s in alive]
            assert all(n == len(s.ids) - 1 for s, n, on in zip(alive, made.lanes.cache.lengths, going, strict=True) if on)
            fresh(made.lanes, [s.ids for s in alive])
            count += 1
    return count
