"""What second moments of inputs tell of a layer's error. Axes: K inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lithe.errors import LitheError


def damped(moment_KK: Tensor, damping: float) -> Tensor:
    """Second moments made invertible: inputs that are never there count as ones, and a share of the mean is added."""
    moment_KK = moment_KK.double()
    diagonal_K = moment_KK.diagonal()
    mean = diagonal_K.mean().clamp(min=1e-30)
    return moment_KK + torch.diag(torch.where(diagonal_K == 0, mean, 0.0) + damping * mean)


def inverse(moment_KK: Tensor, damping: float) -> Tensor:
    """The inverse of damped second moments, in float64."""
    return torch.cholesky_inverse(_root(damped(moment_KK, damping)))


def inverse_root(moment_KK: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of that inverse: row j holds how later columns answer to an error in column j."""
    return _root(inverse(moment_KK, damping)).mT


def _root(matrix_KK: Tensor) -> Tensor:
    root_KK, info = torch.linalg.cholesky_ex(matrix_KK)
    if info:
        raise LitheError("second moments of a layer's inputs are not positive: give more calibration text, or more damping")
    return root_KK
