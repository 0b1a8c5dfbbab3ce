"""A training that is killed after any step and called again ends with the very bits of one that ran through."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lithe.model.decoder import Decoder
from lithe.train.guide import Guide
from lithe.train.loop import Plan, fit
from lithe.train.loss import Chunked
from lithe.train.optim import Optimizer, trainable
from lithe.train.schedule import Cosine

STEPS, STOPS = 6, (1, 4)
Made = Callable[[], tuple[Decoder, Guide]]  # the same anew each time: a model whose trained weights require gradients


class Killed(Exception):
    """The process ends here, as far as the run can tell: what it saved is all that is left."""


def check_resumes(made: Made) -> None:
    """Killed after some steps, in a new process that knows the folder only, it goes on bit for bit."""
    whole = run(made)
    assert whole, "nothing is trained"
    for stop in STOPS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(made, Path(folder), stop)
            except Killed:
                pass
            else:
                raise AssertionError("the run was not stopped, so this proves nothing")
            again = run(made, Path(folder))
        assert again.keys() == whole.keys(), f"killed after step {stop} and resumed, it trains other weights"
        unlike = [name for name in whole if not torch.equal(again[name], whole[name])]
        assert not unlike, f"killed after step {stop} and resumed, {unlike[0]} has other bits"


def run(made: Made, folder: Path | None = None, stop: int | None = None) -> dict[str, Tensor]:
    """All that trained, by name, and what parts hold beside it. stop: the step before which the run is killed."""
    model, guide = made()
    guide.begin(STEPS)

    def batches(step: int, ending: bool) -> list[dict[str, Tensor]]:
        if step == stop:
            raise Killed
        dice = torch.Generator().manual_seed(step)
        ids_BT = torch.randint(0, 32, (2, 9), generator=dice)
        return [{"ids_BT": row[None, :-1], "targets_BT": row[None, 1:]} for row in ids_BT]  # two micro-batches

    plan = Plan(schedule=Cosine(steps=STEPS), optimizer=Optimizer(lr=1e-2), log_every=1000, save_every=0.0)
    fit(model, batches, guide.loss(Chunked(1024)), plan, folder=folder, quiet=True, guide=guide)
    guide.finish()
    found = {name: weight.detach().clone() for name, weight in trainable(model).items()}
    for site, part in (guide.parts or {}).items():
        found |= {f"{site}/{name}": tensor.clone() for name, tensor in part.state_dict().items()}
    return found
