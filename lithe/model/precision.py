"""Names of precisions: what a user asks for, and what a model has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lithe.errors import UsageError
from lithe.kernels.pack import LEVELS
from lithe.model.decoder import Decoder
from lithe.model.linear import PackedLinear
from lithe.model.narrow import NARROW
from lithe.registry import near

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
EXACT = {torch.float32: "fp32", torch.bfloat16: "bf16"}  # how the kernels pack each precision without rounding it
GROUPS = {"32": 32, "128": 128, "column": -1}  # inputs that share a scale; all of an output's
NAMES = ("auto", *FLOATS, *(str(dtype).removeprefix("torch.") for dtype in FLOATS.values()), *LEVELS)


@dataclass(frozen=True)
class Precision:
    """What to load weights as. dtype: of all that is not packed, None for the loader's choice. kind, group: of kernels/pack.py,
    "" where matrices are packed as dtype allows without rounding."""

    dtype: torch.dtype | None = None
    kind: str = ""
    group: int = 0

    @classmethod
    def of(cls, wanted: torch.dtype | str | None) -> Precision:
        """From a dtype or its name: auto, fp32 or float32 and the like, int8 or int4, the last two also as `int4:GROUP` where
        GROUP is 32 (the default), 128 or column. What is not a matrix is bfloat16 beside whole numbers, the cache too.
        """
        if wanted is None or isinstance(wanted, torch.dtype):
            return cls(wanted)
        name, colon, group = wanted.partition(":")
        if name not in NAMES:
            raise UsageError(f"there is no dtype {wanted!r}{near(name, NAMES)}")
        if name in LEVELS:
            if colon and group not in GROUPS:
                raise UsageError(f"dtype {wanted!r}: groups of {name} weights are {', '.join(GROUPS)}")
            return cls(torch.bfloat16, name, GROUPS.get(group, 32))
        if colon:
            raise UsageError(f"dtype {wanted!r}: only {' and '.join(LEVELS)} weights have groups")
        return cls(None if name == "auto" else FLOATS.get(name) or getattr(torch, name))


def precision(model: Decoder) -> str:
    """The name of what a model's matrices are in: `float32`, `int8:32`; several are joined by +."""
    by_kind: dict[str, list[PackedLinear]] = {}
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            by_kind.setdefault(layer.kind, []).append(layer)
    found = {name for kind, layers in by_kind.items() for name in _names(kind, layers)}
    return "+".join(sorted(found)) or str(model.dtype).removeprefix("torch.")


def _names(kind: str, layers: list[PackedLinear]) -> set[str]:
    """One name where one group says how many scales each layer has, as narrow layers are alike under several."""
    if kind in NARROW:
        return {f"{kind}:{layer.group}" for layer in layers}
    if kind not in LEVELS:
        return {str(FLOATS[kind]).removeprefix("torch.")}
    scales = lambda layer, group: 1 if group == -1 else -(-layer.in_features // group)
    fits = lambda layer, group: scales(layer, group) == scales(layer, layer.group)
    for name, group in GROUPS.items():
        if all(fits(layer, group) for layer in layers):
            return {f"{kind}:{name}"}
    return {f"{kind}:{next(name for name, group in GROUPS.items() if fits(layer, group))}" for layer in layers}
