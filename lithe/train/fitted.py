"""Weights that a method learned for one target: a folder of safetensors and JSON, held against the target when it is loaded.

What is in such a folder is not trusted: every claim is checked before memory is given or a number is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lithe.card import check_knobs
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.decoder import Decoder
from lithe.model.header import read_header, read_json, some
from lithe.model.load import ZOO
from lithe.model.writing import told

VERSION = 1
SHIPPED = ZOO / "heads"  # a folder a method, fitted to one of the zoo's models
NOTES, WEIGHTS = "fitted.json", "fitted.safetensors"
SCALE = ".scale"  # of a matrix's rows, where it is held in eight bits
FRESH = "fresh"  # stands for untrained weights where a folder could be named
MOST = 64  # depths, and ranks of each, that a folder may tell rates of

Rates = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Fitted:
    """What a folder held: the module, and how often the guess of each rank was right at each depth (none: never measured)."""

    module: Any
    rates: Rates = ()


def load(method: str, knobs: Any, model: Decoder, build: Any) -> Fitted:
    """The weights that knobs.heads names, in the model's precision and place.

    method: its name. build: its module's class, called as build(knobs, model). Knobs that shape weights, build.SHAPED_BY, are
    as they were fitted; another value than the default must say the same. Raises UsageError where nothing was named and none
    is shipped, FormatError for a folder that cannot be read, UnsupportedError for one that was fitted to another target.
    """
    if knobs.heads == FRESH:
        return Fitted(_placed(fresh(build, knobs, model), model))
    folder = _folder(method, knobs, model, build.SHAPED_BY)
    notes = read_notes(folder)
    if notes["method"] != method:
        raise UnsupportedError(f"{folder} holds weights of {notes['method']}, not of {method}")
    if notes["target"] != identity(model):
        raise UnsupportedError(f"{folder} was fitted to another model ({notes['fitted_to']}): fit anew to this one")
    module = fresh(build, _as_fitted(method, knobs, notes["knobs"], build.SHAPED_BY, folder), model)
    module.load_state_dict(_weights(folder, module))
    return Fitted(_placed(module, model), notes["rates"])


def _folder(method: str, knobs: Any, model: Decoder, shaped_by: Collection[str]) -> Path:
    """The folder that was named; where none was, one that is shipped for this very target, of the asked shape if there is."""
    if knobs.heads:
        folder = Path(knobs.heads).expanduser()
        if not folder.is_dir():
            raise UsageError(f"there is no folder {str(folder)!r} of fitted weights; lithe fit makes one")
        return folder
    default, found = type(knobs)(), []
    asked = {name: getattr(knobs, name) for name in shaped_by if getattr(knobs, name) != getattr(default, name)}
    for shipped in sorted(SHIPPED.glob(f"{method}*")):  # method, or method-target where it is fitted to several
        notes = read_notes(shipped) if (shipped / NOTES).is_file() else {}
        if notes.get("method") == method and notes["target"] == identity(model):
            found.append((sum(notes["knobs"].get(name) != value for name, value in asked.items()), shipped))
    if found:
        return min(found)[1]
    raise UsageError(f"{method} needs weights fitted to its target: lithe fit MODEL --method {method} --data FILE -o DIR "
                     f"makes them, {method}:heads=DIR takes them ({method}:heads={FRESH} takes untrained ones)")


def fresh(build: Any, knobs: Any, model: Decoder, seed: int = 0) -> Any:
    """The module as a fit begins with it, alike for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(knobs, model)


def save(folder: Path, method: str, knobs: Any, model: Decoder, module: nn.Module, *, rates: Sequence[Sequence[float]] = (),
         training: dict | None = None) -> Path:
    """Write a folder that `load` reads; it is seen whole or not at all, except for other files that already lie there."""
    settings = {key: value for key, value in dataclasses.asdict(knobs).items() if key != "heads"}
    notes = {"version": VERSION, "method": method, "knobs": settings, "target": identity(model),
             "fitted_to": model.source or "a model without a name", "rates": [list(row) for row in rates],
             "training": training or {}}
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(prefix=".fitted.", dir=folder))
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, aside / WEIGHTS)
            (aside / NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
            for name in (WEIGHTS, NOTES):  # the notes come last: without them it is no fitted folder
                os.replace(aside / name, folder / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def shrink(folder: Path, out: Path) -> int:
    """A copy that `load` reads as well, matrices in eight bits with a scale a row, the rest in bfloat16; returns its bytes."""
    small: dict[str, Tensor] = {}
    for name, value in load_file(folder / WEIGHTS).items():
        if not value.is_floating_point() or value.dim() != 2:
            small[name] = value.to(torch.bfloat16) if value.is_floating_point() else value
            continue
        small[name + SCALE] = scale_R = value.float().abs().amax(1).clamp_min(1e-12) / 127
        small[name] = (value.float() / scale_R[:, None]).round().to(torch.int8)
    out.mkdir(parents=True, exist_ok=True)
    save_file(small, out / WEIGHTS)
    shutil.copyfile(folder / NOTES, out / NOTES)
    return sum(value.numel() * value.element_size() for value in small.values())


def identity(model: Decoder) -> str:
    """SHA-256 of the target: of the folder it came from, else of its configuration and tensors."""
    if model.folder is not None:
        return checkpoint.fingerprint(model.folder)
    digest = hashlib.sha256(json.dumps(model.config.to_json(), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_notes(folder: Path) -> dict:
    """What a fitted folder says of itself. Raises FormatError for what cannot be."""
    if not (folder / NOTES).is_file():
        raise FormatError(f"{folder} holds no {NOTES}: it is no folder of fitted weights, or its fit has not ended")
    raw = read_json(folder, NOTES)
    if raw.get("version") != VERSION:
        raise FormatError(f"{folder / NOTES} has version {raw.get('version')!r}, this lithe reads {VERSION}; update lithe")
    for key, kind in (("method", str), ("target", str), ("fitted_to", str), ("knobs", dict), ("rates", list)):
        if not isinstance(raw.get(key), kind):
            raise FormatError(f"{folder / NOTES}: {key} must be a {kind.__name__}, not {raw.get(key)!r:.80}")
    rates = raw["rates"]
    legal = lambda rate: type(rate) in (int, float) and 0 <= rate <= 1
    if len(rates) > MOST or not all(isinstance(row, list) and 0 < len(row) <= MOST and all(map(legal, row)) for row in rates):
        raise FormatError(f"{folder / NOTES}: rates must be lists of shares from 0 to 1, at most {MOST} of {MOST}")
    return raw | {"rates": tuple(tuple(map(float, row)) for row in rates)}


def _as_fitted(method: str, knobs: Any, stored: dict, shaping: Sequence[str], folder: Path) -> Any:
    """The knobs asked for, with those that shape weights as they were fitted."""
    usual, taken = type(knobs)(), {}
    for name in shaping:
        asked, was, default = getattr(knobs, name), stored.get(name), getattr(usual, name)
        if type(was) is not type(default):
            raise FormatError(f"{folder / NOTES}: knob {name} must be a {type(default).__name__}, not {was!r:.80}")
        if asked not in (default, was):
            raise UnsupportedError(f"{folder} was fitted with {name}={was}, not {asked}: leave the knob out, or fit anew")
        taken[name] = was
    made = dataclasses.replace(knobs, **taken)
    try:
        check_knobs(made, method)
    except UsageError as problem:
        raise FormatError(f"{folder / NOTES}: {problem}") from None
    return made


def _weights(folder: Path, module: nn.Module) -> dict[str, Tensor]:
    """The folder's tensors, once names and shapes are exactly the module's."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise FormatError(f"{folder} holds no {WEIGHTS}")
    entries, wanted = read_header(path), module.state_dict()
    packed = {name for name, entry in entries.items() if entry.dtype == "I8" and name + SCALE in entries}
    scales = {name + SCALE: tuple(entries[name].shape[:1]) for name in packed}
    if unlike := sorted(name for name in (entries.keys() - scales.keys()) ^ wanted.keys()):
        raise FormatError(f"{path} does not hold the tensors of this method and these knobs: {some(unlike)}")
    for name, entry in entries.items():
        shape = scales[name] if name in scales else tuple(wanted[name].shape)
        legal: Collection[str] = checkpoint.DTYPES
        kind = "floats"
        if name in packed and wanted[name].is_floating_point() and len(shape) == 2:
            legal, kind = ("I8",), "whole numbers of eight bits"
        elif name not in scales and not wanted[name].is_floating_point():
            legal, kind = ("I64",), "whole numbers"
        if entry.shape != shape or entry.dtype not in legal:
            raise FormatError(f"{path}: {name} is {entry.dtype} {list(entry.shape)}, not {kind} {list(shape)}")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as problem:
        raise FormatError(f"{path} cannot be read: {problem}") from None
    for name in packed:
        found[name] = found[name].float() * found.pop(name + SCALE).float()[:, None]
    if broken := sorted(name for name, value in found.items() if not value.isfinite().all()):
        raise FormatError(f"{path}: {some(broken)} holds what is no finite number")
    return found


def _placed(module: nn.Module, model: Decoder) -> nn.Module:
    return module.to(model.device, model.dtype).eval().requires_grad_(False)
