"""All weights of the linear layers are read from one small array, which alone is trained and stored; no work is saved.

Axes: M slots, L entries of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lithe.card import Card, knob
from lithe.compress.calibrate import Calibration
from lithe.compress.groups import find
from lithe.errors import UnsupportedError
from lithe.model.decoder import Decoder
from lithe.model.pooled import pool_layers

CARD = Card(paper="In defense of parameter sharing for model-compression", row=74, trains=True)
QUICK = {"steps": 3, "times": 2}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    times: float = knob(4.0, "weights of the layers over slots of the array", low=1, high=1000)
    map: str = knob("fold", "stretches laid over each other, so that slots are read alike; or chunks hashed (ROAST), the "
                            "baseline", choices=("fold", "hash"))
    chunk: int = knob(32, "neighbours that stay neighbours", low=1)
    scaler: bool = knob(True, "steps of a slot are such as its weights would take, whatever deviation the array has; false: "
                              "the ablation")
    start: str = knob("weights", "the array begins as the mean of what reads it, or as a normal draw",
                      choices=("weights", "drawn"))
    deviation: float = knob(0.02, "of the array's values as it begins", low=1e-6, high=1e3)
    sites: str = knob("*", "linear layers it is about, patterns joined by +")
    steps: int = knob(1000, "of training on the calibration text", low=0)
    rate: float = knob(1e-3, "peak learning rate", low=0)


class Method:
    """Random-fold parameter sharing with the gradient scaler (Desai and Shrivastava 2024, sections 5 and 6).

    A layer's scale is its deviation over the array's. The scaler is a change of variable: what is trained is the array times
    the root mean square of the scales that read a slot, so steps of adaptive optimizers reach weights in their own size.
    """

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate
        self.model: Decoder | None = None
        self.notes: dict[str, Any] = {}

    @torch.no_grad()
    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        if model.config.pool or model.config.ranks or model.config.inputs:
            raise UnsupportedError("some layers are factored, ranged or pooled already: pool plain weights")
        groups, knobs = find(model, "entry", self.knobs.sites), self.knobs
        names = [group.sites[0] for group in groups]
        wide = model.dtype
        flats = [model.get_parameter(f"{name}.weight").detach().flatten().clone() for name in names]
        slots = max(1, round(sum(map(len, flats)) / knobs.times))
        words = {"slots": slots, "seed": seed + 1, "chunk": min(knobs.chunk, slots)}
        words |= {"hashed": 1} if knobs.map == "hash" else {}
        model.config = model.config.replace(pool=tuple((words | dict.fromkeys(names, 1)).items()), family="llama")
        layers = pool_layers(model, model.config.pool)
        pool: Any = model.pool.to(wide)
        place_L, sign_L = (torch.cat([getattr(layer, word).flatten() for layer in layers]) for word in ("places", "signs"))
        scale_L = torch.cat([flat.new_full((len(flat),), float(flat.std()) / knobs.deviation) for flat in flats])
        loads_M = torch.zeros(slots, dtype=wide).index_add_(0, place_L, torch.ones_like(scale_L))
        squares_M = torch.zeros(slots, dtype=wide).index_add_(0, place_L, scale_L.square())
        mean_M = torch.zeros(slots, dtype=wide).index_add_(0, place_L, sign_L * scale_L * torch.cat(flats))
        mean_M /= squares_M.clamp(min=1e-30)
        drawn_M = torch.randn(slots, generator=torch.Generator().manual_seed(seed), dtype=wide) * knobs.deviation
        value_M = mean_M if knobs.start == "weights" else drawn_M
        pool.scale.data = torch.stack([part[0] for part in scale_L.split([len(flat) for flat in flats])])
        if knobs.scaler:
            pool.unit = (squares_M / loads_M.clamp(min=1)).clamp(min=1e-30).rsqrt()
            value_M = value_M / pool.unit
        pool.weight.data = value_M
        self.model, self.notes = model, {"slots": slots, "least_read": int(loads_M.min()), "most_read": int(loads_M.max())}
        return [weight for name, weight in model.named_parameters() if name != "pool.scale"]

    def finish(self, model: Decoder) -> None:
        model.pool.settle()  # type: ignore[operator, union-attr]
