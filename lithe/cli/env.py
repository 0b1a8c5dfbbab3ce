"""Tell what lithe runs on: versions, processor, kernels, models; of a model, what runs it and how fast."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from lithe import __version__
from lithe.cli._common import DEVICE, DTYPE, JSON, OFFLINE, THREADS, emit, open_model, runs_as
from lithe.cli._measure import progress
from lithe.errors import UsageError

GROUP = "look up"


def command(
    model: Annotated[str | None, typer.Argument(help="a model folder, zoo:NAME or a hub id")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="measure the model's passes anew")] = False,
    roofline: Annotated[bool, typer.Option("--roofline", help="hold passes against what the machine could do")] = False,
    as_json: JSON = False,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
) -> None:
    """Show the environment, as a bug report or a measurement needs it. Asks no network.

    Of a model it tells what runs it, why, and what a pass of many rows costs; that is measured the first time and kept.
    Where fewer threads than all are found faster, the model is run on so many from then on.
    """
    if roofline and model is None:
        raise UsageError("--roofline is of a model: lithe env MODEL --roofline")
    of_model = {} if model is None else {"model": _measured(model, measure, roofline, dtype, device, threads, offline)}
    facts = environment() | of_model
    if as_json:
        emit(facts)
        return
    told = facts.pop("model", None)
    lines = [(name, _text(name, value)) for name, value in facts.items()]
    if told is not None:
        lines += [("", ""), ("model", told["name"]), *runs_as(told), *(_roofline(told["roofline"]) if roofline else [])]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  {text}".rstrip())


def _measured(name: str, anew: bool, roofline: bool, dtype: str, device: str, threads: int | None,
              offline: bool) -> dict[str, Any]:
    from lithe.model import runtime

    model = open_model(name, dtype=dtype, device=device, threads=threads, offline=offline)
    known = runtime.stored(model)
    with progress("measuring passes") as tell:
        if anew or known is None or not known.curves:
            runtime.measure(model, progress=tell)
        runtime.cost_curve(model, progress=tell)  # on as many threads as were asked for
    found = {"name": name} | runtime.report(model)
    if roofline:
        from lithe.bench.engines._roofline import roofline as measured

        found["roofline"] = measured(model).json()
    return found


def _roofline(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A line a pass: what it took over the larger of bytes over bandwidth and operations over peaks."""
    lines = [("roofline", f"{found['kind']}, {found['bytes'] / 1e6:.0f} MB: {found['GB/s']:.1f} GB/s, from memory "
                          f"{found['memory_GB/s']:.1f}; {found['Gop/s']:.0f} Gop/s, fp32 {found['fp32_Gop/s']:.0f}")]
    return lines + [(f"T({n})", f"{each['ms']:.2f} ms, {each['ratio'][0]:.2f} of {each['bound_ms']:.2f} ms "
                                f"({each['ratio'][1]:.2f} to {each['ratio'][2]:.2f})") for n, each in found["passes"].items()]


def environment() -> dict[str, Any]:
    """Facts by name; memory in bytes, None for what this system does not tell or does not have."""
    import torch

    from lithe.bench.ledger import DEFAULT
    from lithe.bench.provenance import commit
    from lithe.kernels import library
    from lithe.model.load import zoo
    from lithe.model.machine import kernels, machine, usable_cores
    from lithe.model.runtime import why_threads

    at = machine()
    return {
        "lithe": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.system() + " " + platform.machine(),
        "cpu": at["cpu"],
        "features": at["features"],
        "cores": at["cores"],
        "usable_cores": usable_cores(),
        "threads": library.threads(),
        "why_threads": why_threads(),
        "memory": memory(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "kernels": kernels(),
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
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
    if name == "kernels":
        better = (f"not {variant}: {why}" for variant, why in value["better"].items())
        return "; ".join([f"{value['variant']}: {value['why']}", *better])
    if isinstance(value, dict):
        return ", ".join(f"{key} {version or '(not installed)'}" for key, version in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if name == "memory" and value is not None:
        return f"{value / 2**30:.1f} GiB"
    return "not known" if value is None else str(value)
