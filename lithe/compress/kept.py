"""What a run has done so far, beside the folder that it will write: a run that was stopped goes on from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lithe.compress.allocation import Allocation
from lithe.compress.change import Change
from lithe.compress.groups import Group
from lithe.errors import UsageError
from lithe.model.writing import told


class Kept:
    """A folder of allocations and changes. identity: what the run is made of; a folder with another's is refused."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "run.json"
            if path.exists() and json.loads(path.read_text()) != identity:
                raise UsageError(f"{folder} holds the beginning of another run: delete it, or take another output folder")
            self._write(path, json.dumps(identity, indent=2))
        except (OSError, ValueError) as problem:
            raise UsageError(f"cannot use {folder}: {problem}") from None

    def allocation(self, step: int) -> Allocation | None:
        path = self.folder / f"{step}.json"
        return Allocation.read(path) if path.exists() else None

    def keep_allocation(self, step: int, made: Allocation) -> None:
        self._write(self.folder / f"{step}.json", json.dumps(made.json()))

    def changes(self, step: int, groups: list[Group]) -> list[tuple[Group, Change]] | None:
        """Of these groups; None unless all are there."""
        paths = [self._path(step, group) for group in groups]
        return [(group, Change.load(path)) for group, path in zip(groups, paths, strict=True)] if all(
            path.exists() for path in paths) else None

    def keep_changes(self, step: int, changes: list[tuple[Group, Change]]) -> None:
        for group, change in changes:
            draft = self._path(step, group).with_suffix(".draft")
            with told(draft):
                change.save(draft)
                draft.rename(self._path(step, group))

    def path(self, name: str) -> Path:
        """A folder of its own for what keeps itself, as training does."""
        return self.folder / name

    def done(self) -> None:
        """All is written elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int, group: Group) -> Path:
        return self.folder / f"{step}-{group.name}.safetensors"

    def _write(self, path: Path, text: str) -> None:
        draft = path.with_suffix(".draft")
        with told(draft):
            draft.write_text(text)
            draft.rename(path)
