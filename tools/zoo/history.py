"""What a model had read before its present run: training.json, one entry a finished run, beside the shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

NAME = "training.json"


def runs(folder: Path) -> list[dict]:
    """Finished runs, first to last: steps, ending (the step the decay began at), tokens, seconds. None: an empty list."""
    path = folder / NAME
    return json.loads(path.read_text()) if path.exists() else []


def write(folder: Path, entries: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(json.dumps(entries, indent=2) + "\n")


def steps(entries: list[dict]) -> int:
    return sum(entry["steps"] for entry in entries)


def entry(state: dict) -> dict:
    """The entry of a run from the state of its newest checkpoint."""
    schedule = state["schedule"]
    began = schedule["began"] if schedule["began"] is not None else schedule["decay_from"]
    ending = state["step"] if began is None else began
    return {"steps": state["step"], "ending": ending, "tokens": state["tokens"], "seconds": round(state["seconds"])}
