"""The papers behind lithe, one row each in papers.toml. Standard library only."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lithe.errors import FormatError, UsageError

FILE = Path(__file__).with_name("papers.toml")
KINDS = ("method", "study", "benchmark", "report")
CONFIDENCE = {
    "code": "the authors' code",
    "text": "the paper's text",
    "abstract": "the abstract and summaries",
}
STATUSES = {
    "planned": "nothing is built yet",
    "mechanism": "built, and its mechanism checked on small models; not measured against the claim",
    "measured": "built, checked, and its figure measured beside baselines",
    "refuted": "built, checked and measured, and the claim did not hold here",
}


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One row. What each field means is said at the top of papers.toml."""

    row: int
    id: str
    title: str
    family: str
    room: str
    kind: str
    status: str
    confidence: str
    paper_figure: str
    where: tuple[str, ...] = ()
    deviations: str = ""
    our_figure: str = ""


@cache
def papers(file: Path = FILE) -> dict[int, Paper]:
    """All rows by number. Raises FormatError for a row that cannot be read."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))["paper"]
    except (OSError, KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise FormatError(f"cannot read {file}: {problem}") from None
    rows: dict[int, Paper] = {}
    for table in tables:
        paper = _paper(table, file)
        if paper.row in rows:
            raise FormatError(f"{file}: row {paper.row} stands there twice")
        rows[paper.row] = paper
    return rows


@cache
def statuses(file: Path = FILE) -> dict[int, str]:
    """Rows' statuses, read line by line: all that a listing needs, and it must be instant."""
    rows = re.findall(r'^row = (\d+)$.*?^status = "(\w+)"$', file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return {int(row): status for row, status in rows}


def paper(name: str | int) -> Paper:
    """The paper of that row number or id. Raises UsageError where there is none."""
    rows = papers()
    found = rows.get(int(name)) if str(name).isdecimal() else next((p for p in rows.values() if p.id == name), None)
    if found is None:
        raise UsageError(f"papers.toml has no row {name!r}; rows go from {min(rows)} to {max(rows)}")
    return found


def _paper(table: dict, file: Path) -> Paper:
    fields = {field.name: field for field in dataclasses.fields(Paper)}
    where = f"{file}: row {table.get('row', '?')}"
    if unknown := set(table) - set(fields):
        raise FormatError(f"{where} has unknown fields: {', '.join(sorted(unknown))}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in table]
    if missing:
        raise FormatError(f"{where} lacks {', '.join(missing)}")
    made = Paper(**{**table, "where": tuple(table.get("where", ()))})
    for word, known in ((made.kind, KINDS), (made.status, STATUSES), (made.confidence, CONFIDENCE)):
        if word not in known:
            raise FormatError(f"{where}: {word!r} is none of {', '.join(known)}")
    if made.status != "planned" and not (made.where and made.deviations and made.our_figure):
        raise FormatError(f"{where} is {made.status}, so it must say where, deviations and our_figure")
    return made
