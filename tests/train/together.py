"""What each process of test_team.py runs, alone or as one of several."""

from pathlib import Path

import numpy as np
import torch

from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.feed import Feed
from lithe.train.loop import Plan, fit
from lithe.train.loss import Chunked
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.team import join
from lithe.train.text import of_ids

SMALL = Config(vocab=64, width=16, layers=3, heads=2, kv_heads=1, ffn=32, context=32, tied=True)
STEPS = 6


def train(folder: Path) -> list[float]:
    """The losses of a run in float64, blocks run again for the gradient and a frozen weight among the others."""
    torch.set_num_threads(1)
    dice = np.random.default_rng(0)
    examples = of_ids((dice.integers(0, 64, n), dice.random(n) < 0.7) for n in dice.integers(4, 30, 40))
    model = Decoder(SMALL).init(0).double()
    model.recompute = True
    model.layers[1].self_attn.q_proj.weight.requires_grad_(False)
    losses: list[float] = []
    with join() as team:
        feed = Feed(examples=examples, tokens=90, context=30, micro=50, rank=team.rank, processes=team.size)
        plan = Plan(schedule=Cosine(steps=STEPS), optimizer=Optimizer(lr=0.01), log_every=1, save_every=0.0)
        fit(model, feed, Chunked(rows=16), plan, folder=folder, quiet=True, team=team,
            trackers=[lambda record: losses.append(record["loss"])])
    return losses

