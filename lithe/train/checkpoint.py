"""Checkpoints of a run: weights, optimizer and RNG as safetensors, the rest as JSON; written aside, then renamed.

They are whole, however many processes share the weights: any number of processes can go on from them.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lithe.errors import FormatError
from lithe.model.writing import told
from lithe.train.optim import trainable
from lithe.train.team import ALONE, Team, alike, whole

KEPT = 2
STATE, WEIGHTS, OPTIMIZER, METHOD = "state.json", "model.safetensors", "optimizer.safetensors", "method.safetensors"
ASIDE = ".writing-"


def save(folder: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], state: dict[str, Any],
         method: dict[str, Tensor] | None = None, team: Team = ALONE) -> Path:
    """Write folder/step-<n>; the last KEPT stay. A crash at any point leaves the earlier ones whole.

    method: what a resumed run needs of the method beside its weights. Every process of the team must call. Raises UsageError
    where it cannot be written.
    """
    target = folder / f"step-{step:08d}"
    weights = {name: whole(weight) for name, weight in _weights(model).items()}
    moments, rng = _moments(optimizers), team.gather(torch.get_rng_state())
    if team.first:
        files = {WEIGHTS: weights, OPTIMIZER: {**moments, "rng": rng[0] if team.size == 1 else rng}}
        with told(target):
            _write(folder, target, files | ({METHOD: method} if method else {}), state)
    team.wait()
    return target


def _write(folder: Path, target: Path, files: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    aside = folder / f"{ASIDE}{os.getpid()}"
    for left in folder.glob(f"{ASIDE}*"):  # of a run that was killed while it wrote
        shutil.rmtree(left)
    try:
        aside.mkdir(parents=True)
        for name, tensors in files.items():
            save_file(_plain(tensors), aside / name)
        (aside / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    found = _all(folder)
    return found[-1] if found else None


def load(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], team: Team = ALONE) -> dict[str, Any]:
    """Put a checkpoint back into the model, the optimizers and torch's RNG; returns the state.

    With another number of processes than wrote it, all of them take the first one's RNG.
    """
    load_weights(path, model)
    stored = _read(path / OPTIMIZER)
    rng = stored.pop("rng")
    torch.set_rng_state(rng if rng.dim() == 1 else rng[team.rank if len(rng) == team.size else 0])
    for i, optimizer in enumerate(optimizers):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.items():
            owner, number, name = key.split(".", 2)
            if int(owner) == i:
                weight = weights[int(number)]
                moments.setdefault(int(number), {})[name] = alike(value, weight) if value.shape == weight.shape else value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_state(path)


def load_method(path: Path) -> dict[str, Tensor]:
    """What the method kept beside its weights."""
    return _read(path / METHOD) if (path / METHOD).is_file() else {}


def load_weights(path: Path, model: nn.Module) -> None:
    """Only the weights of a checkpoint, for an export or an evaluation."""
    stored, wanted = _read(path / WEIGHTS), _weights(model)
    if stored.keys() != wanted.keys():
        raise FormatError(f"{path} holds other weights than this model: {sorted(stored.keys() ^ wanted.keys())[:4]}")
    with torch.no_grad():
        for name, weight in wanted.items():
            if stored[name].shape != weight.shape:
                raise FormatError(f"{path}: {name} is {tuple(stored[name].shape)}, the model's is {tuple(weight.shape)}")
            weight.copy_(alike(stored[name], weight))


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable weights, and the buffers of modules that hold some. What is frozen is the caller's."""
    kept, learned = set(model.state_dict(keep_vars=True)), trainable(model)
    owners = {name.rpartition(".")[0] for name in learned}
    buffers = {name: value for name, value in model.named_buffers() if name in kept and name.rpartition(".")[0] in owners}
    return {name: value.detach() for name, value in {**learned, **buffers}.items()}


def _moments(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{i}.{weight}.{name}": whole(value)
        for i, optimizer in enumerate(optimizers)
        for weight, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them: contiguous, each with bytes of its own."""
    return {name: value.detach().contiguous().clone() for name, value in tensors.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise FormatError(f"{path} cannot be read ({problem}); delete {path.parent} to go on from the one before") from None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
