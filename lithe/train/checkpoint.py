"""Checkpoints of a run: weights, optimizer and RNG as safetensors, the rest as JSON; written aside, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lithe.errors import FormatError
from lithe.train.optim import trainable

KEPT = 2
STATE, WEIGHTS, OPTIMIZER = "state.json", "model.safetensors", "optimizer.safetensors"


def save(folder: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], state: dict[str, Any]) -> Path:
    """Write folder/step-<n>; the last KEPT stay. A crash at any point leaves the earlier ones whole."""
    target, aside = folder / f"step-{step:08d}", folder / f".writing-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_weights(model), aside / WEIGHTS)
    save_file({**_moments(optimizers), "rng": torch.get_rng_state()}, aside / OPTIMIZER)
    (aside / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path | None:
    found = _all(folder)
    return found[-1] if found else None


def load(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Put a checkpoint back into the model, the optimizers and torch's RNG; returns the state."""
    load_weights(path, model)
    stored = load_file(path / OPTIMIZER)
    torch.set_rng_state(stored.pop("rng"))
    for i, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.items():
            owner, weight, name = key.split(".", 2)
            if int(owner) == i:
                moments.setdefault(int(weight), {})[name] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_state(path)


def load_weights(path: Path, model: nn.Module) -> None:
    """Only the weights of a checkpoint, for an export or an evaluation."""
    stored, wanted = load_file(path / WEIGHTS), _weights(model)
    if stored.keys() != wanted.keys():
        raise FormatError(f"{path} holds other weights than this model: {sorted(stored.keys() ^ wanted.keys())[:4]}")
    with torch.no_grad():
        for name, weight in wanted.items():
            if stored[name].shape != weight.shape:
                raise FormatError(f"{path}: {name} is {tuple(stored[name].shape)}, the model's is {tuple(weight.shape)}")
            weight.copy_(stored[name])


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable weights and buffers. Frozen weights are the caller's."""
    kept = set(model.state_dict(keep_vars=True))
    buffers = {name: value for name, value in model.named_buffers() if name in kept}
    return {name: value.detach() for name, value in {**trainable(model), **buffers}.items()}


def _moments(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{i}.{weight}.{name}": value
        for i, optimizer in enumerate(optimizers)
        for weight, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
