"""Two thinner matrices in the place of one, and where a model holds such. Axes: N outputs, K inputs, R rank."""

from __future__ import annotations

import torch
from torch import Tensor

from lithe.errors import UsageError
from lithe.model.decoder import Decoder
from lithe.model.linear import Factored


def nearest(weight_NK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [R, K] and B [N, R] whose product is the nearest of this rank, the roots of the singular values on either side."""
    u_NR, s_R, v_RK = torch.linalg.svd(weight_NK, full_matrices=False)
    root_R = s_R[:rank].sqrt()
    return root_R[:, None] * v_RK[:rank], u_NR[:, :rank] * root_R


def factored(model: Decoder) -> dict[str, Factored]:
    """The model's pairs by site. Raises UsageError where there are none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Factored)}
    if not found:
        raise UsageError("this model has no low-rank layers to tune: a step before must make some, by a method of the shelf "
                         "factorize")
    return found
