"""What a run tells: an append-only JSON-lines file, and a progress line for whoever watches."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Log:
    """Writes records to `path` (where given) and shows them: one live line on a terminal, plain lines elsewhere."""

    def __init__(self, path: Path | None, *, quiet: bool = False):
        self.file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", encoding="utf-8")
        self.quiet = quiet
        self.live = Live(console=Console(stderr=True), transient=False) if sys.stderr.isatty() and not quiet else None

    def __enter__(self) -> Log:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
        if self.file:
            self.file.close()

    def write(self, record: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        line = describe(record)
        if self.live:
            self.live.update(Text(line))
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)


def describe(record: dict[str, Any]) -> str:
    """One line: step, loss, speed, time left."""
    left = record.get("seconds_left")
    tail = "" if left is None else f"  {clock(left)} left"
    return (f"step {record['step']}  loss {record['loss']:.4f}  rate {record['rate']:.3g}  "
            f"{record['tokens_per_second']:,.0f} tokens/s{tail}")


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
