"""The kernels' arithmetic in plain PyTorch: slow, and the measure of them. Axes: M rows, N outputs, K inputs, G groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.kernels.pack import BLOCK, LEVELS, Packed, levels, unpack


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as whole numbers [M, blocks, 32] from -127 to 127 and scales [M, blocks]: largest size of a block / 127."""
    x_MGI = F.pad(x_MK.float(), (0, -x_MK.shape[1] % BLOCK)).view(len(x_MK), -1, BLOCK)
    top_MG = x_MGI.abs().amax(-1)
    seen_MG = top_MG > 1e-30
    inverse_MG = torch.where(seen_MG, torch.full_like(top_MG, 127.0).div(top_MG), 0.0)  # 127 / top would round twice
    return (x_MGI * inverse_MG.unsqueeze(-1)).round(), torch.where(seen_MG, top_MG / 127.0, 0.0)


def linear(packed: Packed, x_MK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + bias in float32 [M, N], each kind with its own rounding of the activations; sums are taken in float64."""
    if packed.kind in LEVELS:
        y_MN = _levels_product(packed, x_MK)
    else:
        x = x_MK.float() if packed.kind == "fp32" else x_MK.to(torch.bfloat16)
        y_MN = x.double() @ unpack(packed).double().T
    return (y_MN if bias_N is None else y_MN + bias_N).float()


def _levels_product(packed: Packed, x_MK: Tensor) -> Tensor:
    """Exact inside a block of 32 inputs; blocks add up under their activation scales, groups under the weights' scales."""
    q_MBI, scale_MB = quantize_rows(x_MK)
    whole_NK, scale_NG = levels(packed, torch.arange(packed.n))
    whole_NBI = F.pad(whole_NK, (0, -packed.k % BLOCK)).view(packed.n, -1, BLOCK)
    exact_MNB = torch.einsum("mbi,nbi->mnb", q_MBI.double(), whole_NBI.double())
    by_NB = scale_NG.double().repeat_interleave(packed.group // BLOCK, dim=1)[:, : exact_MNB.shape[2]]
    return torch.einsum("mnb,mb,nb->mn", exact_MNB, scale_MB.double(), by_NB)
