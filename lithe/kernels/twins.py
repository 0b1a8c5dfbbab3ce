"""The kernels' arithmetic in plain PyTorch: slow, and the measure of them.

Axes: M rows, N outputs, K inputs, G groups of them; of attention B sequences, H heads, G heads of keys and values, T rows, D a
head's width.
"""

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


def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, scale: float | None = None) -> Tensor:
    """Causal attention over a cache in bfloat16, [B, H, T, D]; of as many rows as one softmax takes, 256.

    Queries, once scaled, and weights, before they are divided by their sum, are rounded as keys and values are; all else is
    float64.
    """
    near = lambda x: x.float().bfloat16().double()
    heads, rows, width = q_BHTD.shape[1:]
    k_BHTD, v_BHTD = (near(x).repeat_interleave(heads // x.shape[1], dim=1) for x in (k_BGTD, v_BGTD))
    scores_BHTT = near(q_BHTD * (width**-0.5 if scale is None else scale)) @ k_BHTD.transpose(2, 3)
    seen_TT = torch.ones(rows, rows, dtype=torch.bool, device=q_BHTD.device).tril()
    scores_BHTT = scores_BHTT.masked_fill(~seen_TT, -torch.inf)
    weights_BHTT = near((scores_BHTT - scores_BHTT.amax(-1, keepdim=True)).exp())
    return (weights_BHTT @ v_BHTD / weights_BHTT.sum(-1, keepdim=True)).float()
