"""Tune so that fewer FFN channels are on: a smooth count of them is added to the loss of whatever is tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lithe.card import Card, knob
from lithe.errors import UnsupportedError
from lithe.ops.density import density
from lithe.train.batches import IGNORED, Batch

CARD = Card(paper="From PEFT to DEFT: Parameter Efficient Finetuning for Reducing Activation Density in Transformers", row=57,
            promises=("level_zero_is_identity",))
ZERO = {"weight": 0.0}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    weight: float = knob(1.0, "of the count beside the loss", low=0, high=1e3)
    eps: float = knob(1e-7, "a channel is half on where its square is this", low=1e-12, high=1e3)
    relative: float = knob(0.0, "where it is this times the rms of the token's channels instead, for activations that are "
                                "never zero; 0: eps counts", low=0, high=10)
    tap: str = knob("activation", "what is counted: the activation, or where it is gated what down reads",
                    choices=("activation", "product"))


class Method:
    def __init__(self, knobs: Knobs, model: Any):
        self.knobs = knobs
        self.found: list[Tensor] | None = None  # counts [B, T] of the pass that is going on
        self.hooks: list[Any] = []

    def enter(self, model: Any) -> None:
        """Look at the FFNs, from now on and until `leave`: a block that runs twice for its gradient must find us again."""
        if any(hasattr(block.mlp, "experts") for block in model.layers):
            raise UnsupportedError("experts read tokens out of their order, so channels that are on cannot be told by token")
        for block in model.layers:
            if block.mlp is None:
                continue
            if self.knobs.tap == "product":
                self.hooks.append(block.mlp.down_proj.register_forward_pre_hook(self._reads))
            else:
                site = block.mlp.up_proj if block.mlp.gate_proj is None else block.mlp.gate_proj
                self.hooks.append(site.register_forward_hook(partial(self._gives, block.mlp.activation)))

    def leave(self, model: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def loss(self, plain: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        return partial(self._sum, plain)

    def _sum(self, plain: Callable[..., tuple[Tensor, Tensor]], model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The plain sum, and the weighted count summed over the same tokens; while the model is evaluated, the plain sum."""
        if not model.training:
            return plain(model, batch)
        self.found = []
        total, tokens = plain(model, batch)
        found, self.found = self.found, None
        if not self.knobs.weight or not found:
            return total, tokens
        rho_BT = torch.stack(found).mean(0)
        return total + self.knobs.weight * rho_BT[batch["targets_BT"] != IGNORED].sum(), tokens

    def _gives(self, activation: Callable[[Tensor], Tensor], module: Any, args: Any, y_BTF: Tensor) -> None:
        self._count(lambda y: self._rho(activation(y)), y_BTF, module)

    def _reads(self, module: Any, args: Any) -> None:
        self._count(self._rho, args[0], module)

    def _count(self, how: Callable[[Tensor], Tensor], x_BTF: Tensor, module: Any) -> None:
        """Made again for its gradient: what was read is kept by the FFN anyway."""
        if not (module.training and torch.is_grad_enabled() and self.knobs.weight):
            return
        rho_BT = checkpoint(how, x_BTF, use_reentrant=False)
        if self.found is not None:
            self.found.append(rho_BT)

    def _rho(self, x_BTF: Tensor) -> Tensor:
        wide = x_BTF if x_BTF.dtype == torch.float64 else x_BTF.float()
        return density(wide, self.knobs.eps, self.knobs.relative)
