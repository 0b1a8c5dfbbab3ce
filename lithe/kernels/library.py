"""The compiled kernels as Python sees them: which variant runs here, and its functions.

`$LITHE_KERNELS` names a variant (`avx512vnni`, `avx512`, `avx2`, `portable`, `neon`) or `off`; unset, the best one that the
processor can run is taken. `$LITHE_THREADS` says how many threads; unset, as many as PyTorch uses.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from lithe.errors import UsageError
from lithe.kernels import build

_taken: int | None = None  # threads taken over from PyTorch
KINDS = ("fp32", "bf16", "int8", "int4")


class PackedStruct(ctypes.Structure):
    """Packed of lithe.h."""

    _fields_ = (("data", c_void_p), ("kind", c_int32), ("n", c_int32), ("k", c_int32), ("group", c_int32))


@dataclass(frozen=True)
class Library:
    """One variant, loaded."""

    name: str
    lib: ctypes.CDLL

    @property
    def native_bf16(self) -> bool:
        return self.name == "avx512vnni"


@cache
def processor() -> int:
    """Bits of what this processor can do, as cpu.c says."""
    return int(ctypes.CDLL(str(build.library("cpu", (), ("cpu.c",)))).lithe_cpu())


def variants() -> list[str]:
    """Variants that this processor can run, best first."""
    able = processor()
    return [name for name, (needs, _) in build.VARIANTS.items() if needs & able == needs]


def load() -> Library | None:
    """The kernels to use, or None where they are off or cannot be built; why is said once, on stderr."""
    return _load(_said("LITHE_KERNELS") or "")


# Asked for in every pass. What is not there os.environ tells by raising and catching, 10 us where caches are cold, so its own
# dictionary is asked first; where an interpreter has another, os.environ itself.
_HELD: Any = getattr(os.environ, "_data", None)
_KEYS = {name: os.fsencode(name) for name in ("LITHE_KERNELS", "LITHE_THREADS")}


def _said(name: str) -> str | None:
    """A variable of the environment."""
    return None if _HELD is not None and _KEYS[name] not in _HELD else os.environ.get(name)


@cache
def _load(wanted: str) -> Library | None:
    if wanted == "off":
        return None
    if wanted and wanted not in build.VARIANTS:
        raise UsageError(f"LITHE_KERNELS={wanted!r}: choose {', '.join(build.VARIANTS)} or off")
    problem: build.BuildError | None = None
    try:
        able = variants()
        if wanted and wanted not in able:
            raise UsageError(f"LITHE_KERNELS={wanted!r}: this processor can run {', '.join(able)}")
        for name in [wanted] if wanted else able:
            try:
                return variant(name)
            except build.BuildError as error:  # an old compiler may not know the newest instructions
                problem = problem or error
    except build.BuildError as error:
        problem = error
    print(f"lithe: compiled kernels are off, PyTorch's operators are used: {problem}", file=sys.stderr)
    return None


@cache
def variant(name: str) -> Library:
    """A given variant. Raises BuildError where it cannot be built."""
    try:
        lib = ctypes.CDLL(str(build.library(name, build.VARIANTS[name][1])))
    except OSError as error:
        raise build.BuildError(f"the built kernels cannot be loaded: {error}") from None
    packed = POINTER(PackedStruct)
    lib.lithe_linear.argtypes = (packed, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32, c_int32)
    lib.lithe_layers.argtypes = (c_void_p, c_void_p, c_int32, c_void_p)
    lib.lithe_head.argtypes = (packed, c_void_p, c_void_p, c_float, c_void_p, c_void_p, c_int32, c_int32)
    lib.lithe_rows.argtypes = (packed, c_void_p, c_int64, c_void_p)
    lib.lithe_move.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_void_p, c_int64)
    lib.lithe_norm.argtypes = (c_void_p, c_void_p, c_void_p, c_int32, c_int32, c_float)
    for function in (lib.lithe_linear, lib.lithe_layers, lib.lithe_move, lib.lithe_norm, lib.lithe_head):
        function.restype = None
    lib.lithe_express.argtypes, lib.lithe_run.argtypes, lib.lithe_best.argtypes = (c_void_p,), (c_void_p,), (c_void_p, c_int32)
    lib.lithe_rounds.argtypes, lib.lithe_rounds.restype = (c_void_p,), c_int32
    lib.lithe_rows.restype = lib.lithe_alone.restype = lib.lithe_express.restype = lib.lithe_run.restype = c_int64
    return Library(name, lib)


def take_threads() -> None:
    """Run kernels on the threads that PyTorch has now and leave it one: two pools that wait spinning stall each other."""
    global _taken
    if _taken is None or torch.get_num_threads() > 1:
        _taken = torch.get_num_threads()
        torch.set_num_threads(1)


def alone() -> int:
    """How many calls ran on one thread so far although more were wanted, as something else used the cores."""
    found = load()
    return 0 if found is None else int(found.lib.lithe_alone())


def threads() -> int:
    """How many threads a kernel runs on. Results do not depend on it."""
    said = _said("LITHE_THREADS")
    if said is None:
        return torch.get_num_threads() if _taken is None else max(_taken, torch.get_num_threads())
    if not said.isdecimal() or int(said) < 1:
        raise UsageError(f"LITHE_THREADS={said!r}: give a whole number from 1 on")
    return int(said)


