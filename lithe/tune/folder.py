"""Adapter folders: safetensors and JSON, read without trusting them; PEFT's layout where it can say what the parts are.

`lithe.json` beside either layout says how the adapter came to be and which base it was made for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model.adapted import Host, Part
from lithe.model.checkpoint import fingerprint
from lithe.model.decoder import Decoder
from lithe.model.header import FOREIGN, inside, read_header, read_json, some
from lithe.model.parts import PARTS, wide_dtype
from lithe.model.writing import writing
from lithe.tune import peft, peft_read
from lithe.tune.targets import plain_module

VERSION = 1  # of lithe_adapter.json and of the adapter's entry in lithe.json
THEIRS, OURS, RECEIPT, WEIGHTS = "adapter_config.json", "lithe_adapter.json", "lithe.json", "adapter_model.safetensors"
FLOATS = {"F64", "F32", "F16", "BF16"}
WHOLES = {"I32", "I64", "U8", "BOOL"}
RECEIPT_KEYS = {"method": str, "knobs": dict, "seed": int, "base": dict, "lithe": str, "training": dict}


def save(parts: Mapping[str, Part], receipt: dict[str, Any], model: Decoder, folder: Path, *, overwrite: bool = False) -> Path:
    """Write parts and receipt. Nothing is seen under the folder's name until all of it is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        ours = any((folder / name).is_file() for name in (THEIRS, OURS))
        if not (overwrite and ours):
            cure = "it is no adapter's folder" if overwrite else "pass overwrite"
            raise UsageError(f"{folder} exists and is not empty; {cure}")
    expressed = peft.express(parts, model)
    file, (config, tensors) = (OURS, _own(parts)) if expressed is None else (THEIRS, expressed)
    held = {"version": VERSION, "adapter": {**receipt, "base": describe(model)}}
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    with writing(folder, (THEIRS, OURS, RECEIPT, WEIGHTS)) as draft:
        for name, content in ((file, config), (RECEIPT, held)):
            (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
    return folder


def load(folder: Path, model: Decoder, *, any_base: bool = False) -> tuple[dict[str, Part], dict[str, Any]]:
    """The parts in a folder, checked against this model, and their receipt ({} where the folder has none)."""
    if not folder.is_dir():
        raise FormatError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; give an adapter's folder")
    layouts = [name for name in (THEIRS, OURS) if inside(folder, name).is_file()]
    if len(layouts) != 1:
        raise FormatError(f"{folder} has {'both' if layouts else 'neither'} {THEIRS} {'and' if layouts else 'nor'} {OURS}; "
                          "an adapter's folder has one of them")
    receipt = _receipt(folder)
    if receipt and not any_base:
        _same_base(folder, receipt, model)
    config, tensors = read_json(folder, layouts[0]), _tensors(folder, model)
    where = folder / layouts[0]
    parts = _parts(where, config, tensors) if layouts[0] == OURS else peft_read.understand(where, config, tensors, model)
    for site, part in parts.items():
        try:
            problem = part.problem(plain_module(model, site))
        except UsageError as error:
            raise FormatError(f"{where}: {error}; was the adapter made for another model?") from None
        if problem:
            raise FormatError(f"{where}: what it has for {site} does not fit this model: {problem}")
    return parts, receipt


def describe(model: Decoder) -> dict[str, Any]:
    """What tells one base from another: shape and a hash of its weights, those on disk where it was loaded from there."""
    config = model.config
    digest = fingerprint(model.folder) if model.folder is not None else _digest(model)
    return {"name": Path(model.source).name if os.sep in model.source else model.source, "hash": digest,
            "vocab": config.vocab, "width": config.width, "layers": config.layers}


def _digest(model: Decoder) -> str:
    """SHA-256 over the weights in memory, those of adapters left out."""
    digest = hashlib.sha256(json.dumps(model.config.to_json(), sort_keys=True).encode())

    def walk(module: nn.Module, name: str) -> None:
        if isinstance(module, Host):
            module = module.base  # type: ignore[assignment]
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, tensor in own:
            digest.update(repr((f"{name}.{key}", str(tensor.dtype), tuple(tensor.shape))).encode())
            digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
        for key, child in module.named_children():
            walk(child, f"{name}.{key}")

    walk(model, "")
    return digest.hexdigest()


def _same_base(folder: Path, receipt: dict[str, Any], model: Decoder) -> None:
    made, here = receipt.get("base", {}), describe(model)
    for key in ("vocab", "width", "layers"):
        if key in made and made[key] != here[key]:
            raise FormatError(f"{folder} was made for a model with {key} {made[key]!r:.40}; this one has {here[key]}")
    if made.get("hash") not in (None, here["hash"]):
        raise FormatError(f"{folder} was made for other weights than this model's ({made.get('name', 'a model')!r:.80}, "
                          f"{str(made['hash'])[:12]}, not {here['hash'][:12]}); load it on its own base, or say any_base")


def _receipt(folder: Path) -> dict[str, Any]:
    own = read_json(folder, RECEIPT, optional=True)
    if not own:
        return {}
    if own.get("version") != VERSION:
        version = own.get("version")
        raise FormatError(f"{folder / RECEIPT} has version {version!r:.40}, this lithe reads {VERSION}; update lithe")
    receipt = own.get("adapter")
    if not isinstance(receipt, dict):
        raise FormatError(f"{folder / RECEIPT} tells of no adapter")
    for key, value in receipt.items():
        if key not in RECEIPT_KEYS or not isinstance(value, RECEIPT_KEYS[key]):
            raise FormatError(f"{folder / RECEIPT}: {key!r:.80} is unknown here, or not of its type")
    return receipt


def _tensors(folder: Path, model: Decoder) -> dict[str, Tensor]:
    path = inside(folder, WEIGHTS)
    if not path.is_file():
        for file in sorted(folder.iterdir()):
            if file.suffix in FOREIGN:
                raise FormatError(f"{file} {FOREIGN[file.suffix]}")
        raise FormatError(f"{path} does not exist; was the download cut short?")
    header = read_header(path)
    for name, entry in header.items():
        if entry.dtype not in FLOATS | WHOLES:
            raise FormatError(f"{path}: {name!r:.200} is of type {entry.dtype}, which no adapter has")
    tensors = load_file(path)
    dtype = wide_dtype(model)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            if not torch.isfinite(tensor).all():
                raise FormatError(f"{path}: {name!r:.200} holds values that are not finite")
            tensors[name] = tensor.to(dtype)
    return tensors


def _own(parts: Mapping[str, Part]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    said = {site: {"kind": part.kind, "settings": part.settings()} for site, part in parts.items()}
    tensors = {f"{site}/{key}": tensor for site, part in parts.items() for key, tensor in part.state_dict().items()}
    return {"version": VERSION, "parts": said}, tensors


def _parts(where: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Part]:
    if config.get("version") != VERSION or set(config) != {"version", "parts"} or not isinstance(config["parts"], dict):
        raise FormatError(f"{where} must have version {VERSION} and parts, nothing else; a newer lithe may have written it")
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, key = name.partition("/")
        held.setdefault(site, {})[key] = tensor
    if strays := sorted(held.keys() - config["parts"].keys()):
        raise FormatError(f"{where} says nothing of the tensors for {some(strays)}")
    parts: dict[str, Part] = {}
    for site, said in config["parts"].items():
        if not isinstance(said, dict) or set(said) != {"kind", "settings"} or not isinstance(said["settings"], dict):
            raise FormatError(f"{where}: {site!r:.200} must have a kind and settings, nothing else")
        if not isinstance(said["kind"], str) or said["kind"] not in PARTS:
            raise UnsupportedError(f"{where}: {site!r:.200} is of kind {said['kind']!r:.80}; known: {', '.join(PARTS)}")
        try:
            parts[site] = PARTS[said["kind"]].rebuild(said["settings"], held.get(site, {}))
        except FormatError as problem:
            raise FormatError(f"{where}: {site}: {problem}") from None
    if not parts:
        raise FormatError(f"{where} has no parts")
    return parts
