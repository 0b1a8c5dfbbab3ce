"""From a name to a model with its tokenizer: a folder, `zoo:name`, or a hub id where the hub client is installed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lithe.errors import UsageError
from lithe.kernels import library
from lithe.model.checkpoint import load as load_weights
from lithe.model.decoder import Decoder
from lithe.model.fast import fuse
from lithe.model.tokenizer import Tokenizer, generation_settings, same_vocabulary
from lithe.registry import near

KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16"}  # how the kernels pack each precision without rounding it
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


def load(name: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu",
         offline: bool = False, fast: bool = True) -> Decoder:
    """A decoder with its tokenizer, ready to generate.

    name: a model folder, `zoo:tiny` or a hub id. dtype: float32 by default. fast: pack the weights for the compiled
    kernels where these run, which take over PyTorch's threads (it keeps one); give False to change the weights or to save
    the model. Raises FormatError for what cannot be read.
    """
    folder = resolve(name, offline=offline)
    model = load_weights(folder, dtype=dtype, device=device)
    model.eval()
    model.source = str(name)
    model.folder = folder
    model.offline = offline
    model.settings = generation_settings(folder)
    if any(folder.glob("tokenizer*")):  # one that cannot be used is an error, none at all is not
        model.tokenizer = Tokenizer(folder, model.config.vocab)
    kind = KINDS.get(model.dtype)
    if fast and kind and model.device.type == "cpu":
        fuse(model, kind)
        if model.fast is not None:
            library.take_threads()
    return model


def vocabulary_mismatch(a: Decoder, b: Decoder) -> str | None:
    """Why two models cannot share token ids, or None where they can."""
    if a.tokenizer is None or b.tokenizer is None:
        return None if a.config.vocab == b.config.vocab else f"vocabularies of {a.config.vocab} and {b.config.vocab} tokens"
    return same_vocabulary(a.tokenizer, b.tokenizer)
