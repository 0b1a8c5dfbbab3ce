"""Keep the signs of the largest entries and one size for all of them, in Golomb's code: updates 10 to 50 times smaller.

ComPEFT (Yadav et al., 2023), section 2. The size is alpha times the deviation of the whole difference before it is thinned. The
paper finds that large models need no alpha but 1, and chooses it on held-out data for small ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.tune import coding, whole

CARD = Card(paper="ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization",
            row=116, promises=("meets_budget", "touches_only"))
GRID = {"alpha": (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)}  # what is tried where held-out data is given
MEAN, ALONG = 0.0, -1.0  # alphas that stand for a rule; the second is ours
GOLOMB, MASKS = "golomb", "masks"


@dataclass(frozen=True, kw_only=True)
class Knobs:
    share: float = knob(0.2, "of the entries that are kept: the paper's k, 0.05 to 0.5", low=1e-6, high=1)
    alpha: float = knob(1.0, "size of what is kept in deviations of the whole; 0: its mean; -1: reaches as far as the whole",
                        low=-1, high=1e3)
    scope: str = knob("all", "what is ranked and measured together: all tensors, those of a kind, or each alone",
                      choices=whole.SCOPES)
    layout: str = knob(GOLOMB, "golomb is smaller; masks are two bits a value, made for arithmetic", choices=(GOLOMB, MASKS))


class Method:
    turns = whole.TURNS

    def __init__(self, knobs: Knobs):
        if knobs.alpha < 0 and knobs.alpha != ALONG:
            raise UsageError(f"alpha={knobs.alpha:g} would turn the difference around: it is not negative, but for {ALONG:g}")
        self.knobs, self.groups = knobs, whole.Groups(knobs.share, knobs.scope)

    def read(self, name: str, delta: Tensor, turn: int) -> None:
        self.groups.read(name, delta, turn)

    def encode(self, name: str, delta: Tensor, dice: torch.Generator) -> coding.Coded:
        found = self.groups.of(name, delta)
        sizes = {MEAN: found.mean, ALONG: found.along}
        scale = sizes.get(self.knobs.alpha, self.knobs.alpha * found.deviation)
        return coding.signs(delta, found.largest(name, delta), scale, masks=self.knobs.layout == MASKS)
