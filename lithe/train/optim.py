"""Optimizers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lithe.errors import UnsupportedError, UsageError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Settings of the optimizer; `lr` is the peak that the schedule scales."""

    name: str = "adamw"  # adamw, muon
    lr: float = 1e-3
    matrix_lr: float | None = None  # Muon's own peak; None: lr (its updates are scaled to AdamW's size)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1  # matrices only: norms, biases and embeddings do not decay
    momentum: float = 0.95
    vectors: tuple[str, ...] = ("embed", "lm_head")  # matrices whose rows are looked up or compared, not mapped


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build(model: nn.Module, settings: Optimizer) -> list[torch.optim.Optimizer]:
    """One or two torch optimizers over the trainable weights, each group with its peak under "peak"."""
    if settings.name not in ("adamw", "muon"):
        raise UsageError(f"optimizer {settings.name!r}: choose adamw or muon")
    weights = trainable(model)
    if not weights:
        raise UsageError("nothing to train: no weight of the model requires a gradient")
    matrices = [w for name, w in weights.items() if w.dim() == 2 and not any(part in name for part in settings.vectors)]
    chosen = {id(w) for w in matrices}
    others = [w for w in weights.values() if id(w) not in chosen]
    muon = settings.name == "muon" and bool(matrices)
    groups = [{"params": others, "weight_decay": 0.0}]
    if not muon:
        groups.append({"params": matrices, "weight_decay": settings.weight_decay})
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True))
    if muon:
        if not hasattr(torch.optim, "Muon"):
            raise UnsupportedError(f"torch {torch.__version__} has no Muon: use torch 2.9 or later, or the optimizer adamw")
        lr = settings.lr if settings.matrix_lr is None else settings.matrix_lr
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=settings.weight_decay,
                                           momentum=settings.momentum, adjust_lr_fn="match_rms_adamw"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Scale every group's peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
