"""From a name to a model with its tokenizer: a folder, `zoo:name`, or a hub id where the hub client is installed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lithe.errors import UnsupportedError, UsageError
from lithe.kernels import library
from lithe.model import runtime
from lithe.model.blocks import merge_where_faster
from lithe.model.checkpoint import is_packed, load as load_weights
from lithe.model.decoder import Decoder
from lithe.model.fast import fuse
from lithe.model.narrow import widen
from lithe.model.precision import EXACT, Precision
from lithe.model.tokenizer import Tokenizer, generation_settings, same_vocabulary
from lithe.registry import near

ZOO = Path(__file__).parent.parent / "zoo"


def resolve(name: str | Path, *, offline: bool = False) -> Path:
    """The folder a model name stands for. Raises UsageError for what is not there; nothing is fetched for a folder."""
    text = str(name)
    if text.startswith("zoo:"):
        if text.removeprefix("zoo:") not in zoo():
            raise UsageError(f"the zoo has no {text!r}{near(text.removeprefix('zoo:'), zoo())}")
        return ZOO / text.removeprefix("zoo:")
    folder = Path(text).expanduser()
    if text and os.path.exists(folder):  # unlike Path.exists, False for what cannot be a name
        return folder
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise UsageError(f"there is no model folder {text!r}; give a folder, zoo:NAME ({', '.join(zoo())}) or a hub id")
    if offline:
        raise UsageError(f"{text!r} is no folder here, and --offline forbids asking the hub for it")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"{text!r} is no folder here; to fetch it from the hub, pip install 'lithe[hub]'") from None
    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except Exception as problem:  # whatever the client raises: no such name, no access, no network
        why = str(problem).strip().partition("\n")[0] or type(problem).__name__
        raise UsageError(f"{text!r} is no folder here, and the hub did not give it: {why}") from problem


def zoo() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def load(name: str | Path, *, dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu",
         offline: bool = False, fast: bool = True, threads: int | None = None) -> Decoder:
    """A decoder with its tokenizer, ready to generate.

    name: a model folder, `zoo:tiny` or a hub id. dtype: float32 by default on a CPU; others as model/precision.py names them:
    `bf16`, `int8`, `int4:128`, ... Rounding is never chosen unasked. fast: pack the weights for the compiled kernels where
    these run, which take over PyTorch's threads (it keeps one); give False to change the weights. threads: else as many as
    PyTorch has, or fewer where `runtime.measure` found them faster. Raises FormatError for what cannot be read,
    UnsupportedError for a dtype that does not run here.
    """
    folder, wanted, device = resolve(name, offline=offline), Precision.of(dtype), torch.device(device)
    if wanted.kind and device.type != "cpu":
        raise UnsupportedError(f"{dtype} weights run on a CPU, not on {device}; choose a float")
    if isinstance(dtype, str) and dtype != "auto" and is_packed(folder):
        raise UnsupportedError(f"{folder} holds packed weights, which load as they are: leave dtype={dtype} out, or take the "
                               "model that they were made from")
    if threads is not None:
        torch.set_num_threads(threads)
    model = _load_weights(folder, wanted, device, fast)
    model.eval()
    model.source = str(name)
    model.folder = folder
    model.offline = offline
    model.settings = generation_settings(folder)
    if any(folder.glob("tokenizer*")):  # one that cannot be used is an error, none at all is not
        model.tokenizer = Tokenizer(folder, model.config.vocab)
    if fast and device.type == "cpu" and model.dtype in EXACT:
        fuse(widen(model), wanted.kind or EXACT[model.dtype], wanted.group)
        if model.config.ranks and not wanted.kind and EXACT[model.dtype] == "fp32":
            merge_where_faster(model, "fp32")
        if model.fast is not None:
            runtime.take_threads(model, threads)
    return model


def _load_weights(folder: Path, wanted: Precision, device: torch.device, fast: bool) -> Decoder:
    """Each matrix is packed as it is read, so that only one layout of the weights is ever in memory."""
    if is_packed(folder):
        return load_weights(folder, dtype=wanted.dtype, device=device)
    kind, dtype = wanted.kind, wanted.dtype or (torch.float32 if device.type == "cpu" else None)
    if not kind and fast and device.type == "cpu" and dtype in EXACT and library.load() is not None:
        kind = EXACT[dtype]
    return load_weights(folder, dtype=dtype, device=device, kind=kind, group=wanted.group)


def vocabulary_mismatch(a: Decoder, b: Decoder) -> str | None:
    """Why two models cannot share token ids, or None where they can."""
    if a.tokenizer is None or b.tokenizer is None:
        return None if a.config.vocab == b.config.vocab else f"vocabularies of {a.config.vocab} and {b.config.vocab} tokens"
    return same_vocabulary(a.tokenizer, b.tokenizer)
