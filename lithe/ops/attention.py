"""Attention over given keys and values. Axes: B batch, H heads, G key-value heads, T queries, S keys, D head width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 512  # rows up to which spelled-out scores train faster on a CPU than the fused kernel where compiled, by 30 %


def attention(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, *, visible_BTS: Tensor | None = None, causal: bool = False,
              scale: float | None = None, cap: float | None = None,
              lead: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """softmax(cap(q k^T * scale) over visible keys) v, shape [B, H, T, D]; grouped queries share their key-value head.

    visible_BTS is boolean, True where a query sees a key; `causal` means query t sees keys up to t (T = S). lead: keys and
    values [B, G, P, D] that come before the others, and which of them a sequence's queries see [B, P].
    """
    B, H, T, D = q_BHTD.shape
    if lead is not None:
        S = k_BGSD.shape[2]
        if visible_BTS is None:
            visible_BTS = torch.ones(1, T, S, dtype=torch.bool, device=q_BHTD.device)
            visible_BTS = visible_BTS.tril() if causal else visible_BTS
        visible_BTS = torch.cat((lead[2].unsqueeze(1).expand(B, T, -1), visible_BTS.expand(B, T, S)), 2)
        k_BGSD, v_BGSD = (torch.cat((before.to(x), x), 2) for before, x in zip(lead, (k_BGSD, v_BGSD), strict=False))
        causal = False
    G, S = k_BGSD.shape[1], k_BGSD.shape[2]
    if causal and cap is None:
        if T <= SHORT and torch.compiler.is_compiling() and q_BHTD.requires_grad and q_BHTD.device.type == "cpu":
            return _spelled_out(q_BHTD, k_BGSD, v_BGSD, D**-0.5 if scale is None else scale)
        return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, is_causal=True, scale=scale, enable_gqa=H != G)
    if causal:
        visible_BTS = torch.ones(1, T, S, dtype=torch.bool, device=q_BHTD.device).tril()
    # The queries of one group become extra rows of their key-value head: keys and values are never copied.
    repeat = H // G
    q = q_BHTD.reshape(B, G, repeat * T, D)
    mask = None if visible_BTS is None else visible_BTS.unsqueeze(1).repeat(1, 1, repeat, 1)
    if cap is None:
        out = F.scaled_dot_product_attention(q, k_BGSD, v_BGSD, attn_mask=mask, scale=scale)
    else:
        scores = q @ k_BGSD.transpose(-1, -2) * (D**-0.5 if scale is None else scale)
        scores = torch.tanh(scores / cap) * cap
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = torch.softmax(scores.float() if scores.dtype != torch.float64 else scores, dim=-1).to(q.dtype) @ v_BGSD
    return out.reshape(B, H, T, D)


def _spelled_out(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, scale: float) -> Tensor:
    """Plain causal attention for training. N: the rows of a group's queries; R: queries of a group."""
    B, H, T, D = q_BHTD.shape
    G = k_BGTD.shape[1]
    scores_BGNT = q_BHTD.reshape(B, G, H // G * T, D) @ k_BGTD.transpose(-1, -2)
    scores_BGRTT = (scores_BGNT.float() if scores_BGNT.dtype != torch.float64 else scores_BGNT).view(B, G, H // G, T, T) * scale
    later_TT = torch.arange(T)[:, None] < torch.arange(T)
    p_BGRTT = scores_BGRTT.masked_fill(later_TT, float("-inf")).softmax(-1).to(v_BGTD.dtype)
    return (p_BGRTT.view(B, G, -1, T) @ v_BGTD).view(B, H, T, D)
