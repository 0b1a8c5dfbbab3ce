"""Where a measurement comes from: the machine, the sources and the weights it rests on."""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lithe import __version__, registry
from lithe.bench import sources
from lithe.bench.ledger import Record
from lithe.model.checkpoint import fingerprint
from lithe.model.decoder import Decoder
from lithe.model.load import resolve
from lithe.model.machine import machine
from lithe.model.precision import precision

DIGITS = 16  # of a SHA-256, in hex: enough to tell sources and prompts apart
SOURCES = {".py", *sources.COMPILED}


def record(suite: str, model: Decoder, *, measured: dict[str, Any], inputs: Any, settings: dict[str, Any],
           seed: int | None = None, method: str = "", knobs: Mapping[str, Any] | None = None,
           parts: Iterable[Any] = (), run: Iterable[Any] = ()) -> Record:
    """A record with all that can be known without asking a method.

    inputs: the prompts or the text. knobs: the method's, by name. parts: the objects whose files did the work. run: as for
    `code_hash`.
    """
    knobs = dict(knobs or {})
    at = dict(machine())
    if model.device.type == "cuda":
        at["gpu"] = torch.cuda.get_device_name(model.device)
    return Record(
        suite=suite, model=model.source, model_hash=fingerprint(model.folder) if model.folder else None, method=method,
        knobs=knobs, weights=_weights(knobs), settings=settings, seed=seed, prompts_hash=digest(inputs),
        code_hash=code_hash(*parts, run=run), measured=measured, machine=at, device=model.device.type,
        precision=precision(model), threads=model.threads, torch=torch.__version__,
        lithe=__version__, commit=commit(), kernels=model.kernels)


def _weights(knobs: dict[str, Any]) -> dict[str, str]:
    """Hashes of the models that knobs name: their weights decide the numbers as much as the target's do."""
    named = {name: value for name, value in knobs.items() if isinstance(value, str)
             and (value.startswith("zoo:") or (Path(value).expanduser() / "config.json").is_file())}
    return {name: fingerprint(resolve(value)) for name, value in named.items()}


@cache
def commit() -> str | None:
    """The commit of the checkout that lithe runs from; None where it was installed without one."""
    home = registry.ROOT.parent
    if not (home / ".git").exists():  # git would else answer for whatever repository an installed copy lies in
        return None
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()


def code_hash(*objects: Any, run: Iterable[Any] = ()) -> str:
    """Hash of the sources a measurement rests on: lithe without its methods, and the files of these methods' objects.

    run: the functions that it goes through; then of lithe only what these, the objects and those that they hold import, and
    what is compiled.
    """
    if run:
        return _digest_files(sorted(sources.run_by(run, [each for each in objects if each is not None])))
    files = {Path(inspect.getsourcefile(type(each)) or "") for each in objects if each is not None}
    extra = sorted(path for path in files if path not in _house())
    return _digest_files([*_house(), *extra])


@cache
def _house() -> tuple[Path, ...]:
    """Every source under lithe/ that is not a method's file."""
    methods = {entry.path for entry in registry.entries()}
    return tuple(sorted(path for path in registry.ROOT.rglob("*") if path.suffix in SOURCES and path not in methods))


def _digest_files(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        name = path.relative_to(registry.ROOT).as_posix() if path.is_relative_to(registry.ROOT) else path.name
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:DIGITS]


def digest(data: Any) -> str:
    """Hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:DIGITS]
