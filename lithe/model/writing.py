"""A folder that is seen under its name only when it is whole."""

from __future__ import annotations

import fnmatch
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lithe.errors import UsageError
from lithe.model.header import INDEX

MODEL = ("config.json", "lithe.json", INDEX, "model*.safetensors")  # files of a model


@contextmanager
def told(path: Path) -> Iterator[None]:
    """UsageError for a place that cannot be written, or a disk that is full."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter for a disk that is full
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {why}; choose a folder you may write to, with room for it") from error


@contextmanager
def writing(folder: Path, replaces: Iterable[str] = MODEL) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` once all is written.

    Of what lay there, files whose names match `replaces` go, others stay. Raises UsageError for a place that cannot be written.
    """
    with told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield draft
            for old in folder.iterdir() if folder.is_dir() else ():
                if not any(fnmatch.fnmatch(old.name, name) for name in replaces) and not (draft / old.name).exists():
                    shutil.copytree(old, draft / old.name) if old.is_dir() else shutil.copy2(old, draft)
            draft.chmod(0o755)
            if folder.is_dir():
                old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                folder.rename(old / "old")
                draft.rename(folder)
                shutil.rmtree(old)
            else:
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
