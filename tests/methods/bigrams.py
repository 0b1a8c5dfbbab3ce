"""A target whose next token depends on the last one alone, by a table, so that what a head can know is known."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

from lithe import registry
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.train.learn import Lesson, learn

VOCAB = 32


def table(branches: tuple[int, ...]) -> np.ndarray:
    """Laws [VOCAB, VOCAB]: token t has branches[t % len] equally likely followers, one of them its next in a cycle of all."""
    dice, laws = np.random.default_rng(0), np.zeros((VOCAB, VOCAB))
    cycle = dice.permutation(VOCAB)
    for token, after in zip(cycle, np.roll(cycle, -1), strict=True):
        many = branches[token % len(branches)]
        others = [other for other in dice.permutation(VOCAB) if other != after]
        laws[token, [after, *others[: many - 1]]] = 1 / many
    return laws


@cache
def bigrams(*branches: int) -> Decoder:
    """The model of that table: one block that does nothing, so that a state is the token it stands at."""
    config = Config(vocab=VOCAB, width=VOCAB, layers=1, heads=2, kv_heads=1, ffn=8, context=96)
    model = Decoder(config).double().init(0)
    laws_VV = torch.from_numpy(table(branches))
    with torch.no_grad():
        model.layers[0].self_attn.o_proj.weight.zero_()
        model.layers[0].mlp.down_proj.weight.zero_()
        model.embed_tokens.weight.copy_(torch.eye(VOCAB))
        model.lm_head.weight.copy_(laws_VV.clamp_min(1e-9).log().T * VOCAB**-0.5)
    return model.eval()


@cache
def text(*branches: int, tokens: int = 12000) -> np.ndarray:
    """What that model says, drawn from its table."""
    dice, sums, ids = np.random.default_rng(1), table(branches).cumsum(1), [0]
    for u in dice.random(tokens):
        ids.append(int(np.searchsorted(sums[ids[-1]], u * sums[ids[-1], -1], side="right").clip(0, VOCAB - 1)))
    return np.array(ids)


@cache
def fitted(spec: str, *branches: int, steps: int = 80) -> tuple[Path, tuple]:
    """The folder of a fit on that text, and the rates it measured."""
    made, folder = registry.parse(spec), Path(mkdtemp(prefix="lithe-")) / "fitted"
    lesson = Lesson(steps=steps, rows=16, length=31, warmup=5)  # not the cycle's length: else rows would all begin alike
    found = learn(made.entry, made.knobs, bigrams(*branches), text(*branches), lesson, folder=folder, quiet=True)
    return folder, found.rates


def drafting(spec: str, *branches: int):
    return plan(bigrams(*branches), draft=spec)


def tokens_per_pass(made, temperature: float = 1.0) -> float:
    """Over sixteen sequences side by side."""
    law = Law.of(temperature=temperature)
    batch = [Sequence([i, 2 * i], limit=40, context=96, law=law, seed=i) for i in range(16)]
    passes = sum(1 for _ in run(made, batch))
    return sum(len(s.tokens) for s in batch) / passes
