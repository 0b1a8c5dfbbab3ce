"""As soon as an end of text is committed, drop every place after it: the next pass is shorter."""

from dataclasses import dataclass

import torch

from lithe.card import Card
from lithe.diffuse.canvas import OPEN

CARD = Card(paper="Learning to Parallel: Accelerating Diffusion Large Language Models via Adaptive Parallel Decoding (EoTP)",
            row=2)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    pass


class Method:
    def __init__(self, knobs, model):
        pass

    def cut(self, canvas):
        """The first place that is not needed any more."""
        ends_T = torch.isin(canvas.ids_T, torch.tensor(sorted(canvas.sequence.eos), dtype=torch.long))
        ends_T[: canvas.prompt] = False
        found = (ends_T & (canvas.when_T != OPEN)).nonzero().flatten()
        return int(found[0]) + 1 if len(found) else None
