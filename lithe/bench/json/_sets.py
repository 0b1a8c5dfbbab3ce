"""Schemas and instances of them, from files of three kinds."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lithe.errors import FormatError, UsageError

SHIPPED = Path(__file__).parent / "schemas.jsonl"
LAID = ("jsonschemabench/sample.jsonl.gz", "jsonschema_testsuite/draft2020-12.zip")  # in the folder of data sets
OWN = "own"  # the name of the shipped set


@dataclass(frozen=True)
class Case:
    """A schema, and instances with the verdict that is right."""

    name: str
    set: str
    schema: Any
    tests: tuple[tuple[Any, bool], ...]


def read(path: str | Path) -> list[Case]:
    """Cases of a .jsonl or .jsonl.gz file (id, split, schema, tests) or of a zip of the standard's own test suite.

    Raises UsageError for a file that is not there, FormatError for one that holds something else.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix == ".zip":
            return list(_suite(path))
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
        return [_case(json.loads(line)) for line in text.split("\n") if line.strip()]
    except FileNotFoundError:
        raise UsageError(f"there is no file of schemas {path}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as problem:
        raise FormatError(f"{path} holds no schemas with tests: {type(problem).__name__}: {problem}") from None


def _case(row: dict[str, Any]) -> Case:
    tests = tuple((test["data"], bool(test["valid"])) for test in row["tests"])
    return Case(str(row["id"]), str(row.get("split", OWN)), row["schema"], tests)


def _suite(path: Path) -> Iterator[Case]:
    """Groups of the official suite. What it calls valid only because formats may be ignored is left out: ours are not."""
    with zipfile.ZipFile(path) as files:
        for name in sorted(files.namelist()):
            if not name.startswith("tests/") or not name.endswith(".json") or name.endswith("/format.json"):
                continue
            for i, group in enumerate(json.loads(files.read(name))):
                tests = tuple((test["data"], bool(test["valid"])) for test in group["tests"])
                yield Case(f"{Path(name).stem}/{i}", "test suite", group["schema"], tests)


def chosen(paths: Sequence[str], data: str | None, limit: int | None) -> list[Case]:
    """Cases of the files named, else the shipped ones and those in the folder of data sets; at most `limit` of a set."""
    found = [SHIPPED, *(Path(data or "") / name for name in LAID if data)]
    cases = [case for path in (paths or found) for case in read(path)]
    if limit is None:
        return cases
    seen: dict[str, int] = {}
    return [case for case in cases if (seen.update({case.set: seen.get(case.set, 0) + 1}) or seen[case.set]) <= limit]
