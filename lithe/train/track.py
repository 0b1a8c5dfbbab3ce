"""Trackers beside the run's own log, for those who have one installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lithe.errors import UsageError
from lithe.registry import near

Track = Callable[[dict[str, Any]], None]


def tensorboard(folder: Path) -> Track:
    """Every number of a record as a scalar, in the format that TensorBoard reads."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("to log to tensorboard, pip install tensorboard") from None
    writer = SummaryWriter(str(folder))

    def track(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    return track


TRACKERS = {"tensorboard": tensorboard}


def tracker(name: str | None, folder: Path) -> Sequence[Track]:
    """The tracker of that name, writing into a folder of its own beside the run; none for None."""
    if name is None:
        return ()
    if name not in TRACKERS:
        raise UsageError(f"there is no tracker {name!r}{near(name, TRACKERS)}")
    return (TRACKERS[name](folder.with_name(f"{folder.name}.{name}")),)
