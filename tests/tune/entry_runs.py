"""Short trainings of entries, through the loop that users' trainings run through."""

import numpy as np
import torch

from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.feed import Feed
from lithe.train.guide import Guide
from lithe.train.loop import Plan, fit
from lithe.train.loss import Chunked
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.text import of_ids
from lithe.tune.rack import Rack

torch.set_num_threads(1)
SMALL = Config(vocab=64, width=32, layers=1, heads=2, kv_heads=1, ffn=48, context=32, tied=True)


class Stopped(Exception):
    """A run was to end here."""


class Watched(Guide):
    """Tells after each step what the parts hold."""

    def __init__(self, method, parts, tell):
        super().__init__(method, parts)
        self.tell = tell

    def update(self, step, optimizers):
        super().update(step, optimizers)
        self.tell(step, self.parts, optimizers)


def feed(micro=None, seed=0):
    dice = np.random.default_rng(seed)
    examples = of_ids((dice.integers(0, 64, n), dice.random(n) < 0.8) for n in dice.integers(4, 30, 40))
    return Feed(examples=examples, tokens=90, context=30, micro=micro)


def model(config=SMALL, seed=0):
    return Decoder(config).init(seed).double()


def run(spec, steps=12, *, base=None, make=model, folder=None, stop=None, tell=lambda *_: None, lr=0.01, micro=50, rack=None,
        name="a"):
    """The adapter and the run's progress. stop: the call of the feed that ends it, everything before being saved."""
    rack = rack or Rack.of(base or make())
    adapter = rack.make(spec, name=name)
    rack.train(name)
    batches = feed(micro)

    def feeding(step, ending):
        if step == stop:
            raise Stopped
        return batches(step, ending)

    guide = Watched(adapter.method, adapter.parts, tell)
    guide.begin(steps)
    plan = Plan(schedule=Cosine(steps=steps), optimizer=Optimizer(lr=lr), log_every=100, save_every=0.0)
    at = fit(rack.model, feeding, Chunked(rows=16), plan, folder=folder, quiet=True, guide=guide)
    return adapter, at


def values(adapter):
    """All that an adapter's parts hold, by name."""
    return {f"{site}/{key}": tensor.clone() for site, part in adapter.parts.items()
            for key, tensor in part.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def resumed_equals_whole(spec, stops, folder, **more):
    """Whether a run that ends at each of the stops and goes on holds, bit for bit, what one that runs through holds."""
    whole = values(run(spec, **more)[0])
    for stop in stops:
        try:
            run(spec, folder=folder / str(stop), stop=stop, **more)
        except Stopped:
            pass
        else:
            return False
        if not same(values(run(spec, folder=folder / str(stop), **more)[0]), whole):
            return False
    return True
