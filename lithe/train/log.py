"""What a run tells: an append-only JSON-lines file, and a progress line for whoever watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Log:
    """Writes records to `path` (where given) and shows them: one live line on a terminal, plain lines elsewhere.

    after: the step a run goes on from; what a killed run wrote of later steps is dropped, for they are made again.
    trackers: called with each record too.
    """

    def __init__(self, path: Path | None, *, after: int = 0, quiet: bool = False,
                 trackers: Iterable[Callable[[dict[str, Any]], None]] = ()):
        self.file, self.trackers = None, tuple(trackers)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            forget(path, after)
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
        for track in self.trackers:
            track(record)
        line = describe(record)
        if self.live:
            self.live.update(Text(line))
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)


def describe(record: dict[str, Any]) -> str:
    """One line: step, loss, held-out loss, rate, speed, memory, time left; each where the record has it."""
    of = f"/{record['steps']}" if record.get("steps") else ""
    form = {"loss": "loss {:.4f}", "valid_loss": "held out {:.4f}", "rate": "rate {:.3g}",
            "tokens_per_second": "{:,.0f} tokens/s"}
    parts = [f"step {record['step']}{of}", *(text.format(record[name]) for name, text in form.items() if name in record)]
    if "peak_bytes" in record:
        parts.append(f"{record['peak_bytes'] / 2**20:,.0f} MiB")
    if record.get("seconds_left") is not None:
        parts.append(f"{clock(record['seconds_left'])} left")
    return "  ".join(parts)


def forget(path: Path, after: int) -> None:
    """Drop a log's records of later steps, and a last line that was cut short."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    kept = "".join(line + "\n" for line in whole.splitlines() if json.loads(line)["step"] <= after)
    if kept != text:
        aside = path.with_name(f".{path.name}")
        aside.write_text(kept, encoding="utf-8")
        aside.replace(path)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
