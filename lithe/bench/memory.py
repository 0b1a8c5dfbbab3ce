"""The peak of this process's memory. Standard library only: a process that needs nothing else must not seem larger."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def restart_peak() -> None:
    """Let the peak of resident memory count from now on, where the system can do that (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the process so far, an upper bound


def peak_mb() -> float:
    """Peak of this process's resident memory in MB, since `restart_peak` where that can be told."""
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
