"""What tools hold tuned models against: plain training on a calibration text."""

from __future__ import annotations

from collections.abc import Callable

from lithe.compress.calibrate import Calibration, shifted
from lithe.model.decoder import Decoder
from lithe.train.loop import Plan, fit
from lithe.train.loss import next_token
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine


def learn(model: Decoder, text: Calibration, steps: int, rate: float, each: Callable[[], object] = lambda: None) -> Decoder:
    """Train what requires a gradient, in place, on the text over and over. each: called before every step."""

    def batch(call: int, ending: bool) -> dict:
        each()
        ids_BT = text.batches[call % len(text.batches)]["ids_BT"]
        return {"ids_BT": ids_BT, "targets_BT": shifted(ids_BT)}

    plan = Plan(schedule=Cosine(steps=steps, warmup=max(1, steps // 20)), optimizer=Optimizer(lr=rate, weight_decay=0.0),
                log_every=steps)
    fit(model, batch, next_token, plan, quiet=True)
    return model.eval()
