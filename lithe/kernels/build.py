"""Builds the C sources with the system's compiler on first use, into the user's cache. Standard library only.

A library is keyed by its sources, the compiler and the flags, which name processor features and never "this machine": a
cache shared by several machines is sound. One library holds one variant; which one is chosen in `library.py`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
# Every fused multiply-add is spelled out: the compiler must add none, or results would depend on how rows are blocked.
COMMON = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl")
VARIANTS: dict[str, tuple[int, tuple[str, ...]]] = {  # best first: bits that cpu.c must report, flags
    "avx512vnni": (7, (*AVX512, "-mavx512vnni", "-mavx512bf16")),
    "avx512": (3, AVX512),
    "avx2": (1, AVX2),
    "portable": (0, ()),
}
if platform.machine().lower() in ("aarch64", "arm64"):
    VARIANTS = {"neon": (0, ())}  # part of the architecture: no flag asks for it


class BuildError(Exception):
    """The sources could not be compiled here. The message is for the user."""


def compiler() -> str:
    """The C compiler: $CC, or the first of cc, gcc and clang."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        if found := shutil.which(name):
            return found
    raise BuildError("no C compiler was found (cc, gcc, clang or $CC)")


def library(name: str, flags: tuple[str, ...], files: tuple[str, ...] | None = None) -> Path:
    """The shared library of some sources (all but cpu.c) under these flags, built if it is not in the cache."""
    cc = compiler()
    code = [SOURCES / file for file in files] if files else sorted(p for p in SOURCES.glob("*.c") if p.name != "cpu.c")
    digest = hashlib.sha256(repr((_version(cc), COMMON, flags, platform.machine())).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + path.read_bytes())
    folder = cache_folder()
    target = folder / f"{name}-{digest.hexdigest()[:20]}.so"
    if target.exists():
        return target
    with _lock(folder / f"{name}.lock"):
        if not target.exists():  # another process may have built it meanwhile
            _compile([cc, *COMMON, *flags, *map(str, code), "-lpthread"], target)
    return target


def cache_folder() -> Path:
    """Where built libraries lie: $XDG_CACHE_HOME/lithe/kernels or its default; a temporary folder where it is read-only."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "lithe" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _temporary()
    return folder if os.access(folder, os.W_OK) else _temporary()


@cache
def _temporary() -> Path:
    """A folder that nobody else can write to: what is built there is loaded as code."""
    return Path(tempfile.mkdtemp(prefix="lithe-kernels-"))


@cache
def _version(cc: str) -> str:
    """What the compiler says of itself, so that an upgraded one builds anew."""
    return subprocess.run([cc, "--version"], capture_output=True, text=True, check=False).stdout


def _compile(command: list[str], target: Path) -> None:
    """Run the compiler; the library appears under its name only when it is whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made.so"
        done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise BuildError(f"{Path(command[0]).name} could not build the kernels: {said}")
        os.replace(made, target)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process builds, the others wait. Where files cannot be locked both build, and the rename keeps it sound."""
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
