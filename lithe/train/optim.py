"""Optimizers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    pull: float = 0.0  # towards the weights of the start, in every step of AdamW (see Pulled)
    vectors: tuple[str, ...] = ("embed", "lm_head")  # matrices whose rows are looked up or compared, not mapped


class Pulled(torch.optim.AdamW):
    """AdamW whose weights are drawn back to where they began: AdamR of DAREx (Deng et al., 2024), the L2 form.

    After each step a weight goes lr * pull / sqrt(v) of its way back, v being the mean over all weights of Adam's corrected
    second moment; all of the way where that is more than 1. The start is part of the state: a resumed run goes on alike.
    """

    def __init__(self, groups: list[dict], *, pull: float, **settings: Any):
        super().__init__(groups, **settings)
        self.pull = pull
        self.start = {w: w.detach().clone() for group in self.param_groups for w in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        found = super().step(closure)
        every = ((weight, group) for group in self.param_groups for weight in group["params"])
        held = [(weight, group) for weight, group in every if "exp_avg_sq" in self.state[weight]]
        total = 0.0
        for weight, group in held:
            seen = 1 - group["betas"][1] ** float(self.state[weight]["step"])
            total += self.state[weight]["exp_avg_sq"].sum(dtype=torch.float64).item() / seen
        mean = total / max(1, sum(weight.numel() for weight, _ in held))
        for weight, group in held:
            start = self.state[weight].setdefault("start", self.start[weight])
            weight.lerp_(start, min(1.0, group["lr"] * self.pull / max(mean, 1e-30) ** 0.5))
        return found


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def build(model: nn.Module, settings: Optimizer) -> list[torch.optim.Optimizer]:
    """One or two torch optimizers over the trainable weights, each group with its peak under "peak"."""
    if settings.name not in ("adamw", "muon"):
        raise UsageError(f"optimizer {settings.name!r}: choose adamw or muon")
    if settings.pull and settings.name != "adamw":
        raise UsageError(f"the pull to the start is AdamW's: leave the optimizer {settings.name} out, or the pull")
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
        common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "fused": True}
        plain = torch.optim.AdamW
        optimizers.append(Pulled(groups, pull=settings.pull, **common) if settings.pull else plain(groups, **common))
    if muon:
        if not hasattr(torch.optim, "Muon"):
            raise UnsupportedError(f"torch {torch.__version__} has no Muon: use torch 2.9 or later, or the optimizer adamw")
        lr = settings.lr if settings.matrix_lr is None else settings.matrix_lr
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=settings.weight_decay,
                                           momentum=settings.momentum, adjust_lr_fn="match_rms_adamw"))
    for optimizer in optimizers:
        optimizer.register_step_post_hook(_tell)
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _tell(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Count the step in its weights' versions, which torch's fused ones leave as they are: parts know by them what is stale."""
    torch.autograd.graph.increment_version([weight for group in optimizer.param_groups for weight in group["params"]])


def set_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Scale every group's peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
