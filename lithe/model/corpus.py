"""A text to look things up in, as token ids, and a place on disk for what was worked out from it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model.tokenizer import Tokenizer

FREE = "python"  # stands for the sources of Python's own library: free text that is wherever lithe runs
PIECE = 1 << 16  # characters tokenised at once


@dataclass(frozen=True)
class Corpus:
    """Token ids [T], and what they are made of: alike only where text and tokenizer are."""

    ids: np.ndarray
    key: str

    def derived(self, name: str, make: Callable[[np.ndarray], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays made from the ids: read from the user's cache, or made and put there. name: says how, versions included."""
        return kept(f"{self.key} {name}", lambda: make(self.ids))


def load(name: str, tokenizer: Tokenizer | None) -> Corpus:
    """Read a corpus: `.npy` (token ids), `.jsonl` (objects with a text), any other file as plain text, `.gz` allowed.

    Raises UsageError for a file that is not there, FormatError for one that cannot be read, UnsupportedError for text
    where the model has no tokenizer.
    """
    path = Path(name).expanduser()
    if path.suffix == ".npy":
        ids = _read(path, lambda: np.load(path, allow_pickle=False))
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or (len(ids) and ids.min() < 0):
            raise FormatError(f"{path} holds no row of token ids")
        return Corpus(ids.astype(np.int32), hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest())
    texts = _library() if name == FREE else _texts(path)
    if tokenizer is None:
        raise UnsupportedError(f"this model has no tokenizer to read the corpus {name!r} with: give a .npy file of token ids")
    key = hashlib.sha256(tokenizer.backend.to_str().encode())
    for text in texts:
        key.update(text.encode("utf-8", "surrogatepass") + b"\0")
    made = _cached(key.hexdigest(), lambda: {"ids": _tokens(texts, tokenizer)})
    return Corpus(made["ids"], key.hexdigest())


def cache() -> Path:
    """The user's cache folder: $LITHE_CACHE, else lithe's place in the system's usual one."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lithe"
    return Path(os.environ.get("LITHE_CACHE") or usual).expanduser()


def kept(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the user's cache, or made and put there. key: says all that they come of, and how, versions included."""
    return _cached(hashlib.sha256(key.encode()).hexdigest(), make)


def _texts(path: Path) -> list[str]:
    suffixes = [end for end in path.suffixes if end != ".gz"]
    whole = _read(path, lambda: (gzip.open if path.suffix == ".gz" else open)(path, "rb").read().decode("utf-8"))
    if suffixes[-1:] != [".jsonl"]:
        return [whole]
    rows = _read(path, lambda: [json.loads(line) for line in whole.splitlines() if line.strip()])
    texts: list = [row.get("text") if isinstance(row, dict) else None for row in rows]
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise FormatError(f"{path}: entry {number} is no object with a text")
    return texts


def _library() -> list[str]:
    """The modules that lie at the top of Python's library."""
    return [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]


def _read(path: Path, how: Callable):
    try:
        return how()
    except FileNotFoundError:
        raise UsageError(f"there is no corpus {str(path)!r}; give a text, .jsonl or .npy file, or {FREE!r}") from None
    except (OSError, ValueError, EOFError, zlib.error) as problem:
        raise FormatError(f"{path} cannot be read: {problem}") from None


def _tokens(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """Ids of all texts in a row, cut into pieces that end at line ends so that no text is too long to tokenise fast."""
    pieces: list[str] = []
    for text in texts:
        piece: list[str] = []
        size = 0
        for line in text.splitlines(keepends=True):
            piece.append(line)
            size += len(line)
            if size >= PIECE:
                pieces, piece, size = [*pieces, "".join(piece)], [], 0
        pieces.append("".join(piece))
    encoded = tokenizer.backend.encode_batch(pieces, add_special_tokens=False)
    return np.array([i for one in encoded for i in one.ids], dtype=np.int32)


def _cached(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays kept as .npy files and read in place; written whole or not at all."""
    folder = cache() / key
    if not folder.is_dir():
        made = make()
        cache().mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache()) as work:
            new = Path(work) / "new"
            new.mkdir()
            for name, array in made.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
            try:
                new.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
