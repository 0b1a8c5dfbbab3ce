"""From a model's name and a calibration file to a smaller model's folder: the Python face of `lithe compress`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lithe import __version__
from lithe.compress import calibrate, run, surgery
from lithe.compress.calibrate import Calibration
from lithe.compress.groups import MIXED, find
from lithe.compress.kept import Kept
from lithe.compress.mixture import parse
from lithe.compress.options import left_bytes
from lithe.compress.run import Result, Tell
from lithe.compress.step import Step
from lithe.errors import LitheError, UnsupportedError, UsageError
from lithe.kernels import sparse
from lithe.model import checkpoint
from lithe.model.decoder import Decoder
from lithe.model.linear import SparseLinear
from lithe.model.load import load, resolve
from lithe.model.machine import machine
from lithe.model.packing import fill_zeros, layers as packed_layers, save_zeros
from lithe.train.loop import Interrupted

TOKENS, LENGTH = 65_536, 512  # of calibration, where not said


def compress(model: str | Path | Decoder, methods: Sequence[str] | str, *, calibration: str | Path | Calibration | None = None,
             out: str | Path | None = None, tokens: int = TOKENS, length: int = LENGTH, seed: int = 0, dry_run: bool = False,
             overwrite: bool = False, offline: bool = False, dense_zeros: bool = False, tell: Tell | None = None) -> Result:
    """A smaller model by these methods in order, saved as `out` where given; the model given stays as it is.

    model: a decoder of plain weights, or what `lithe.load` takes. calibration: a text file (.txt, .jsonl, either .gz), of which
    `tokens` tokens are read in rows of `length`. dry_run: only allocations and what they predict. dense_zeros: write zeros
    like other weights, for other programs to read; else layers are stored sparse where that is smaller. A run that writes
    a folder and is stopped goes on where it was when it is called again. Raises UsageError, UnsupportedError, FormatError.
    """
    methods = [methods] if isinstance(methods, str) else list(methods)
    steps = [parse(text) for text in methods]
    target = None if out is None or dry_run else _free(Path(out), overwrite)
    dense = _dense(model, offline)
    dtype = _stored_dtype(dense)
    _check_zeros(steps, dtype, dense_zeros)
    text = calibration if isinstance(calibration, Calibration | None) else calibrate.read(
        calibration, dense, length=length, tokens=tokens, seed=seed)
    run.check(dense, steps, text)
    parent = None if dense.folder is None else checkpoint.fingerprint(dense.folder)
    kept = None
    if target is not None and parent is not None:
        kept = Kept(target.with_name(f".{target.name}.compressing"), {
            "model": parent, "methods": [step.exact for step in steps], "seed": seed,
            "calibration": None if text is None else text.digest})
    try:
        found = run.compress(dense, methods, text, seed=seed, dry_run=dry_run, tell=tell, kept=kept, item=dtype.itemsize)
    except KeyboardInterrupt:
        if kept is None:
            raise
        raise Interrupted(f"stopped; what is done is kept beside {target}: the same command goes on from there") from None
    except LitheError as problem:
        if kept is not None and not isinstance(problem, Interrupted):
            kept.done()
        raise
    found.report |= _predicted(dense, found, dtype, dense_zeros) if dry_run else {}
    if target is not None:
        _tell_origin(found, dense, parent, calibration)
        _write(found, dense, target, dtype, overwrite, dense_zeros)
        if kept is not None:
            kept.done()
    return found


def _free(out: Path, overwrite: bool) -> Path:
    """The output folder, found to be free before the work starts."""
    if out.is_file():
        raise UsageError(f"{out} is a file; choose another name")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"{out} exists and is not empty; pass overwrite")
    return out


def _dense(model: str | Path | Decoder, offline: bool) -> Decoder:
    """The model with plain layers in the place of sparse ones; one that was given stays as it is."""
    if not isinstance(model, Decoder):
        return fill_zeros(load(model, fast=False, offline=offline))
    few = any(isinstance(layer, SparseLinear) for layer in packed_layers(model).values())
    return fill_zeros(surgery.copied(model)) if few else model


def _check_zeros(steps: Sequence[Step], dtype: torch.dtype, dense_zeros: bool) -> None:
    """Refuse budgets in bytes that single zeros cannot meet."""
    asked = [step.text for step in steps if step.recover is None and "entry" in step.units
             and (step.target.bytes is not None or step.unit == MIXED)]
    if asked and (dense_zeros or dtype not in sparse.KINDS.values()):
        why = "with dense_zeros" if dense_zeros else f"in {str(dtype).removeprefix('torch.')}"
        raise UnsupportedError(f"{asked[0]!r}: {why} zeros are stored like other weights and save no bytes: say ratio or "
                               "pattern")


def _stored_dtype(model: Decoder) -> torch.dtype:
    """The precision of the folder that a model came from."""
    if model.folder is None:
        return model.dtype
    raw = json.loads((resolve(model.folder) / "config.json").read_text())
    return getattr(torch, str(raw.get("torch_dtype") or raw.get("dtype")), model.dtype)


def _predicted(model: Decoder, found: Result, dtype: torch.dtype, dense_zeros: bool) -> dict[str, Any]:
    """Bytes of weights, and how much faster they are read for a token. What a recovery cuts is not known before."""
    before, size = found.before or model, lambda one: sum(weight.numel() for weight in one.parameters()) * dtype.itemsize
    saved = 0.0
    for plan in found.allocations[-1:]:
        groups = [group for group in find(before, "bits" if plan.unit == MIXED else plan.unit) if group.name in plan.levels]
        full = [group.weights * dtype.itemsize for group in groups]
        if plan.unit != "entry":
            saved = sum(full) - plan.cost
        elif not dense_zeros and dtype in sparse.KINDS.values():
            saved = sum(full) - sum(left_bytes(before, group, float(plan.levels[group.name] or 0), dtype.itemsize)
                                    for group in groups)
    left = size(before) - saved
    idle = 0 if model.config.tied else model.embed_tokens.weight.numel() * dtype.itemsize  # rows that a token does not read
    return {"bytes": round(left), "bytes_before": size(model), "faster": round((size(model) - idle) / (left - idle), 2)}


def _tell_origin(found: Result, dense: Decoder, parent: str | None, calibration: str | Path | Calibration | None) -> None:
    """What it takes to do it again, and what the bits depend on beside that."""
    made = {"lithe": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": machine()["cpu"],
            "kernels": dense.kernels}
    file = "" if isinstance(calibration, Calibration | None) else str(Path(calibration).expanduser().resolve())
    for receipt in found.model.receipts[len(dense.receipts):]:
        receipt |= {"parent": parent, "model": dense.source or str(dense.folder or ""), "made": made}
        if receipt["calibration"] is not None:
            receipt["calibration"]["file"] = file


def _write(found: Result, dense: Decoder, out: Path, dtype: torch.dtype, overwrite: bool, dense_zeros: bool) -> None:
    model = found.model
    if few := {} if dense_zeros else save_zeros(model, dtype):
        whole = sum(layer.in_features * layer.out_features * dtype.itemsize for layer in few.values())
        left = sum(layer.stored.data.numel() for layer in few.values())
        found.report["sparse"] = {"layers": len(few), "bytes": left, "bytes_dense": whole}
    packed = bool(packed_layers(model))
    if packed:
        model.to(dtype)
    checkpoint.save(model, out, dtype=None if packed else dtype, tokenizer_from=dense.folder, overwrite=overwrite)
    size = lambda folder: sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    weights = sum(weight.numel() for weight in dense.parameters())
    found.report |= {"out": str(out), "bytes": size(out), "bytes_before": None if dense.folder is None else size(dense.folder),
                     "bits": round(8 * size(out) / weights, 3)}  # of all files, for each weight that there was
    found.model = checkpoint_model(out, dense)


def checkpoint_model(out: Path, dense: Decoder) -> Decoder:
    """What was written, as it is read: with the rounding to the stored precision."""
    return load(out, fast=False, offline=True) if dense.folder is not None else checkpoint.load(out)


def told(found: Result) -> dict[str, Any]:
    """A result as JSON."""
    return {"allocations": [asdict(allocation) for allocation in found.allocations], **found.report}
