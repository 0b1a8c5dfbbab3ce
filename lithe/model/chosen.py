"""An FFN that computes only the channels that a small predictor expects to matter for a token.

Axes: M tokens, C width, F channels, U channels that any of the tokens wants, R rank of the predictor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.model.modules import FFN

WIDEST = 0.6  # share of the channels from which on computing all of them is quicker than gathering


class Chosen(FFN):
    """down(mask * act(gate(x)) * up(x)), mask = [choose_b(choose_a(x)) > 0], its own for every token."""

    def __init__(self, ffn: FFN, rank: int):
        nn.Module.__init__(self)
        self.gate_proj, self.up_proj, self.down_proj = ffn.gate_proj, ffn.up_proj, ffn.down_proj
        self.sub_norm, self.activation = ffn.sub_norm, ffn.activation
        width, inner = ffn.up_proj.in_features, ffn.up_proj.out_features
        self.choose_a, self.choose_b = nn.Linear(width, rank, bias=False), nn.Linear(rank, inner)
        self.joint = False  # whether the task's gradient reaches the predictor, straight through the mask
        self.watch = False  # whether a pass leaves logits and inner activations behind, in `seen`
        self.seen: tuple[Tensor, Tensor] | None = None
        self._columns: tuple[Any, Tensor] | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Above 0 for channels that are computed."""
        return self.choose_b(self.choose_a(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.watch or (torch.is_grad_enabled() and any(w.requires_grad for w in self.parameters())):
            return self._whole(x)
        x_MC = x.reshape(-1, x.shape[-1])
        on_MF = self.logits(x_MC) > 0
        wanted_U = on_MF.any(0).nonzero().flatten()
        plain = all(type(layer) is nn.Linear for layer in (self.gate_proj or self.up_proj, self.up_proj, self.down_proj))
        if not plain or len(wanted_U) > WIDEST * on_MF.shape[1]:
            return self.down_proj(self._inner(x) * on_MF.view(*x.shape[:-1], -1))
        pick = lambda layer: F.linear(x_MC, layer.weight[wanted_U], None if layer.bias is None else layer.bias[wanted_U])
        inner_MU = pick(self.up_proj)
        inner_MU = self.activation(inner_MU) if self.gate_proj is None else self.activation(pick(self.gate_proj)) * inner_MU
        out_MC = (inner_MU * on_MF[:, wanted_U]) @ self._down()[wanted_U]
        return (out_MC if self.down_proj.bias is None else out_MC + self.down_proj.bias).view(*x.shape[:-1], -1)

    def _inner(self, x: Tensor) -> Tensor:
        inner = self.up_proj(x)
        return self.activation(inner) if self.gate_proj is None else self.activation(self.gate_proj(x)) * inner

    def _whole(self, x: Tensor) -> Tensor:
        """All channels, then the mask: as it is learned."""
        logits, inner = self.logits(x if self.joint else x.detach()), self._inner(x)
        if self.watch:
            self.seen = (logits, inner.detach())
        hard = (logits > 0).to(inner)
        mask = hard + torch.sigmoid(logits) - torch.sigmoid(logits).detach() if self.joint else hard
        return self.down_proj(inner * mask)

    def _down(self) -> Tensor:
        """The rows [F, C] that channels give, one after another in memory."""
        weight: Any = self.down_proj.weight
        key = (weight.data_ptr(), weight._version)
        if self._columns is None or self._columns[0] != key:
            self._columns = (key, weight.detach().mT.contiguous())
        return self._columns[1]
