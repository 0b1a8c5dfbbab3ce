"""Text the target itself writes, for drafts that learn to say what it would (FastDraft, Zafrir et al., 2024, section 3)."""

from __future__ import annotations

import sys
from collections.abc import Sequence as Seq

import numpy as np

from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import FormatError
from lithe.model.decoder import Decoder
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

BATCH = 32  # sequences written side by side
GIVEN = 32  # tokens of the data that each begins with
LONG = 224  # most tokens it goes on with


def write(model: Decoder, ids: np.ndarray, tokens: int, *, temperature: float = 0.0, seed: int = 0, opening: Seq[int] = (),
          quiet: bool = False) -> np.ndarray:
    """At least so many tokens: pieces of the data, each with what the model says after it. opening: begin with this instead.

    Raises FormatError where the data is too short to begin from.
    """
    prefix = [] if model.tokenizer is None else list(model.tokenizer.prefix)
    room = model.config.context - len(prefix) - 1
    given, long = min(GIVEN, max(1, room // 4)), min(LONG, room - max(1, room // 4))
    if len(ids) <= given:
        raise FormatError(f"the text has {len(ids)} tokens, too few to begin from")
    dice, law = np.random.default_rng(seed), Law.of(temperature=temperature)
    made = plan(model)
    found: list[int] = []
    while len(found) < tokens:
        starts = dice.integers(0, len(ids) - given, BATCH)
        begun = [[*prefix, *(opening or ids[at : at + given].tolist())] for at in starts]
        batch = [Sequence(one, limit=long, context=model.config.context, law=law, seed=int(dice.integers(2**31)))
                 for one in begun]
        for _ in run(made, batch):
            pass
        found += [token for s in batch for token in s.ids[len(prefix) :]]
        if not quiet:
            print(f"written {len(found):,} of {tokens:,} tokens", file=sys.stderr, flush=True)
    return np.array(found, dtype=np.int32)
