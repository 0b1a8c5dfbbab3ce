"""What this machine is and which kernels it runs, with reasons."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

from lithe.kernels import build, library

# Instruction sets that change which kernels run; the rest of the flags say nothing about speed.
FEATURES = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
            "asimd", "asimddp", "i8mm", "bf16", "sve")


@cache
def machine() -> dict[str, Any]:
    """Processor, cores and features; nothing that names the machine or its owner."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return {"cpu": facts.get("model name") or platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "features": [name for name in FEATURES if name in flags]}


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernels() -> dict[str, Any]:
    """The variant of the compiled kernels that runs ("torch": none), why it is that one, and why none of the better ones."""
    said, used = os.environ.get("LITHE_KERNELS", ""), library.load()
    if said == "off":
        return {"variant": "torch", "why": "LITHE_KERNELS=off asks for PyTorch's operators", "better": {}}
    try:
        able = library.variants()
    except build.BuildError as problem:
        return {"variant": "torch", "why": str(problem), "better": {}}
    names = list(build.VARIANTS)
    better = {name: _why_not(name, able, said) for name in names[: names.index(used.name) if used else len(names)]}
    if used is None:
        return {"variant": "torch", "why": "none can be built here", "better": better}
    why = f"LITHE_KERNELS={said} asks for it" if said else "the best one that runs here"
    return {"variant": used.name, "why": why, "better": better}


def _why_not(name: str, able: list[str], said: str) -> str:
    if name not in able:
        known = {flag for each in able for flag in build.VARIANTS[each][1]}
        missing = [flag.removeprefix("-m") for flag in build.VARIANTS[name][1] if flag not in known]
        return f"this processor lacks {', '.join(missing)}"
    if said:
        return f"LITHE_KERNELS={said} asks for another"
    try:
        library.variant(name)
    except build.BuildError as problem:
        return str(problem)
    return "it runs here"
