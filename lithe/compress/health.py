"""What is wrong with what a block's sites have read."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lithe.errors import LitheError
from lithe.train.stats import Inputs


def problems(layer: int, found: dict[str, Inputs], needs: Iterable[str]) -> list[str]:
    """Sites that saw no token, inputs that are always zero, second moments of too few tokens. Raises LitheError where what was
    read is no number."""
    told = []
    for name, inputs in found.items():
        where = f"layers.{layer}.{name}"
        if not inputs.tokens:
            told.append(f"{where} saw no token, so it is scored by its weights alone")
            continue
        if not torch.isfinite(inputs.square_K).all():
            raise LitheError(f"{where} reads values that are no numbers: the model overflows on the calibration text")
        if dead := int((inputs.square_K == 0).sum()):
            told.append(f"{dead} of {len(inputs.square_K)} inputs of {where} are always zero")
        if "moments" in needs and inputs.tokens < len(inputs.square_K):
            told.append(f"{where} saw {inputs.tokens} tokens, fewer than its {len(inputs.square_K)} inputs: second moments "
                        "lack rank and lean on damping; give more calibration text")
    return told
