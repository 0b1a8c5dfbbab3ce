"""How many channels of an activation are on. Axes: B batch, T tokens, F channels, M rows, N outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def density(x_BTF: Tensor, eps: float = 1e-7, relative: float = 0.0) -> Tensor:
    """The mean over channels of a^2 / (a^2 + eps), [B, T]: a smooth count of those that are not zero.

    relative: where positive, eps is (relative * rms of the token's channels)^2 instead, a constant to the gradient: for
    activations that are never quite zero.
    """
    square = x_BTF.square()
    level = eps if not relative else (relative * relative * square.mean(-1, keepdim=True)).detach().clamp(
        min=torch.finfo(square.dtype).tiny)
    return (square / (square + level)).mean(-1)


def counted(x_BTF: Tensor, relative: float = 0.0) -> Tensor:
    """The share of channels that are on, [B, T]: larger in size than `relative` times the rms of the token's channels."""
    return (x_BTF.abs() > relative * x_BTF.square().mean(-1, keepdim=True).sqrt()).to(torch.float32).mean(-1)


def threshold(x_BTF: Tensor, relative: float) -> Tensor:
    """x with the channels that are off set to zero, so that a product can leave them out."""
    return x_BTF * (x_BTF.abs() > relative * x_BTF.square().mean(-1, keepdim=True).sqrt())


def skipping(x_MF: Tensor, weight_NF: Tensor) -> tuple[Tensor, int]:
    """x W^T from the channels alone that are not zero, row by row, and the multiplications that this took."""
    outs, spent = [], 0
    for x_F in x_MF:
        on = x_F.nonzero().squeeze(1)
        outs.append(F.linear(x_F[on], weight_NF[:, on]))
        spent += len(on) * len(weight_NF)
    return torch.stack(outs), spent
