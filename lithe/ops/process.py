"""A Gaussian process: what a few tried points tell about untried ones. Axes: N tried, M untried, D coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALES = (0.25, 0.5, 1.0, 2.0)  # lengths tried, in units of sqrt(D): the likeliest explains the values best


def posterior(x_ND: Tensor, y_N: Tensor, x_MD: Tensor, *, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation [M] of a process with a Matern 5/2 kernel, of values brought to mean 0 and deviation 1 and back.

    noise: variance of an observation in those units (Rasmussen and Williams, 2006, algorithm 2.1 and equation 4.17).
    """
    center, spread = y_N.mean(), max(float(y_N.std(correction=0)), 1e-9)
    z_N = (y_N - center) / spread
    eye_NN = torch.eye(len(x_ND), dtype=x_ND.dtype)
    best: tuple[float, float, Tensor] | None = None
    for scale in SCALES:
        length = scale * x_ND.shape[1] ** 0.5
        root_NN = torch.linalg.cholesky(_matern(x_ND, x_ND, length) + noise * eye_NN)
        fit_N = torch.cholesky_solve(z_N[:, None], root_NN)[:, 0]
        likelihood = -0.5 * float(z_N @ fit_N) - float(root_NN.diagonal().log().sum())
        if best is None or likelihood > best[0]:
            best = likelihood, length, root_NN
    assert best is not None
    _, length, root_NN = best
    cross_NM = _matern(x_ND, x_MD, length)
    mean_M = cross_NM.T @ torch.cholesky_solve(z_N[:, None], root_NN)[:, 0]
    left_M = 1 - torch.linalg.solve_triangular(root_NN, cross_NM, upper=False).square().sum(0)
    return center + spread * mean_M, spread * left_M.clamp_min(0).sqrt()


def _matern(a_ND: Tensor, b_MD: Tensor, length: float) -> Tensor:
    r_NM = torch.cdist(a_ND, b_MD) * (math.sqrt(5) / length)
    return (1 + r_NM + r_NM**2 / 3) * torch.exp(-r_NM)
