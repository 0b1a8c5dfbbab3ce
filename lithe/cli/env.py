"""Tell what lithe runs on: versions, processor, memory, models, ledger."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from lithe import __version__
from lithe.cli._common import JSON, emit

GROUP = "look up"


def command(as_json: JSON = False) -> None:
    """Show the environment, as a bug report or a measurement needs it. Asks no network."""
    facts = environment()
    if as_json:
        emit(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {_text(name, value)}")


def environment() -> dict[str, Any]:
    """Facts by name; memory in bytes, None for what this system does not tell or does not have."""
    import torch

    from lithe.bench.ledger import DEFAULT
    from lithe.bench.provenance import commit, machine
    from lithe.model.load import zoo

    at = machine()
    return {
        "lithe": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.system() + " " + platform.machine(),
        "cpu": at["cpu"],
        "features": at["features"],
        "cores": at["cores"],
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else at["cores"],
        "threads": torch.get_num_threads(),
        "memory": memory(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "packages": packages(),
        "zoo": zoo(),
        "ledger": os.environ.get("LITHE_LEDGER") or str(DEFAULT),
    }


def memory() -> int | None:
    """Bytes this process may use: the machine's, or less where a container says so."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    said = [text for limit in limits if limit.exists() and (text := limit.read_text().strip()).isdecimal()]
    return min([whole, *map(int, said)])


def packages() -> dict[str, str | None]:
    """Versions of all that lithe can use, extras included; None where one is not installed."""
    named = (re.match(r"[\w.-]+", requirement) for requirement in metadata.requires("lithe") or ())
    return {name: _version(name) for name in sorted({found[0] for found in named if found})}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {version or '(not installed)'}" for key, version in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if name == "memory" and value is not None:
        return f"{value / 2**30:.1f} GiB"
    return "not known" if value is None else str(value)
