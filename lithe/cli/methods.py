"""List and search the methods."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lithe.card import PROMISES
from lithe.cli._common import JSON, emit, table
from lithe.errors import UsageError
from lithe.papers import statuses
from lithe.registry import Entry, entries, near

GROUP = "look up"
LOSSLESS = {"same_tokens": "tokens", "same_law": "law"}  # what stays the same, in the table's words


def command(
    words: Annotated[list[str] | None, typer.Argument(help="words that name, summary or paper must hold")] = None,
    room: Annotated[str | None, typer.Option(help="only of this room")] = None,
    shelf: Annotated[str | None, typer.Option(help="only of this shelf")] = None,
    promise: Annotated[str | None, typer.Option(help="only those that promise this")] = None,
    as_json: JSON = False,
) -> None:
    """List methods, all or those that hold every word. None of their files is imported.

    Under `lossless` stands what a method provably keeps of plain decoding: greedy tokens, the law of sampled ones, or
    neither ("no": it may change what the model says).
    """
    found = entries()
    for asked, known in ((room, {e.room for e in found}), (shelf, {e.shelf for e in found}), (promise, PROMISES)):
        if asked is not None and asked not in known:
            raise UsageError(f"nothing is called {asked!r} here{near(asked, known)}")
    found = [e for e in found if room in (None, e.room) and shelf in (None, e.shelf)
             and (promise is None or promise in e.card.promises) and _holds(e, words or [])]
    if as_json:
        emit([record(e) for e in found])
    elif found:
        table(("method", "shelf", "row", "lossless", "status", "summary"),
              [(e.name, f"{e.room}/{e.shelf}", e.card.row, lossless(e), status(e), e.summary) for e in found])
    else:
        print("no method holds all of these words; lithe methods lists all")


def record(entry: Entry) -> dict[str, Any]:
    """What is known of a method without importing it."""
    card = entry.card
    return {"name": entry.name, "room": entry.room, "shelf": entry.shelf, "row": card.row, "promises": list(card.promises),
            "needs": list(card.needs), "trains": card.trains, "summary": entry.summary, "status": status(entry),
            "lossless": card.lossless}


def status(entry: Entry) -> str:
    """Its paper's status; a baseline has no row and so no claim to measure."""
    if entry.card.row is None:
        return "baseline"
    return statuses().get(entry.card.row, "no such row")


def lossless(entry: Entry) -> str:
    """What stays the same as in plain decoding, "no" where nothing is promised."""
    return " + ".join(word for promise, word in LOSSLESS.items() if promise in entry.card.promises) or "no"


def _holds(entry: Entry, words: list[str]) -> bool:
    text = f"{entry.address} {entry.address.replace('_', ' ')} {entry.summary} {entry.card.paper}".casefold()
    return all(word.casefold() in text for word in words)
