"""Check that a method, such as one of your own, keeps what its card promises."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from lithe import registry
from lithe.card import PROMISES
from lithe.cli._common import JSON, emit
from lithe.errors import LitheError, UnsupportedError, UsageError
from lithe.registry import Entry, entries, near

GROUP = "prove"
CONTRACTS = registry.ROOT / "contracts"


def command(
    method: Annotated[str, typer.Argument(help="a method's file, such as ./my.py, or the name of one that lithe has")],
    as_json: JSON = False,
) -> int:
    """Run a method's contract: its knobs and verbs, then one check for each promise on its card.

    The checks are those that lithe's own methods are tested with. The exit code is 0 where all hold, 1 where one fails.
    """
    entry = registry.find(method)
    results = []
    for name, meaning, check in checks(entry):
        problem = attempt(check, entry)
        results.append({"check": name, "meaning": meaning, "problem": problem})
        if not as_json:
            print(f"ok    {name}: {meaning}" if problem is None else f"FAIL  {name}: {problem}", flush=True)
    broken = sum(result["problem"] is not None for result in results)
    if as_json:
        emit({"method": entry.address, "holds": not broken, "checks": results})
    else:
        print(f"{entry.address}: {len(results) - broken} of {len(results)} checks hold")
    return 1 if broken else 0


def checks(entry: Entry) -> list[tuple[str, str, Callable[[Entry], None]]]:
    """Name, meaning and check of all that a method must hold. Raises UnsupportedError where a shelf or promise has no check."""
    places = {(e.room, e.shelf) for e in entries()}
    if (entry.room, entry.shelf) not in places:
        known = [f"{room}/{shelf}" for room, shelf in places]
        raise UsageError(f"there is no shelf {entry.room}/{entry.shelf}{near(f'{entry.room}/{entry.shelf}', known)}")
    if not (CONTRACTS / f"{entry.shelf}.py").is_file():
        raise UnsupportedError(f"shelf {entry.shelf!r} has no contract yet, so its promises cannot be checked")
    contract = import_module(f"lithe.contracts.{entry.shelf}")
    _one_thread()
    missing = [promise for promise in entry.card.promises if not hasattr(contract, f"check_{promise}")]
    if missing:
        raise UnsupportedError(f"the contract of shelf {entry.shelf!r} has no check for {', '.join(missing)}")
    found = [("knobs", "every knob has help and a default within its range", check_knobs)]
    if hasattr(contract, "check_verbs"):
        found.append(("verbs", "its verbs do what the shelf asks of them", contract.check_verbs))
    return found + [(promise, PROMISES[promise], getattr(contract, f"check_{promise}")) for promise in entry.card.promises]


def check_knobs(entry: Entry) -> None:
    """Knobs are frozen and keyword-only, each with help and a legal default; Method is there to take them."""
    kind = getattr(entry.module, "Knobs", None)
    assert isinstance(kind, type) and dataclasses.is_dataclass(kind), "it has no dataclass Knobs"
    fields, form = dataclasses.fields(kind), kind.__dataclass_params__  # type: ignore[attr-defined]
    assert form.frozen and all(field.kw_only for field in fields), "Knobs must be @dataclass(frozen=True, kw_only=True)"
    for field in fields:
        assert field.default is not dataclasses.MISSING, f"knob {field.name} has no default"
        assert field.metadata.get("help"), f"knob {field.name} has no help: make it with lithe.card.knob"
    entry.knobs()
    assert isinstance(getattr(entry.module, "Method", None), type), "it has no class Method"


def attempt(check: Callable[[Entry], None], entry: Entry) -> str | None:
    """What broke, None where the check holds. Whatever a method raises is a finding, not our failure."""
    try:
        check(entry)
    except (AssertionError, LitheError) as problem:
        return str(problem) or _where(problem, None)
    except Exception as problem:
        return f"{type(problem).__name__}: {problem} ({_where(problem, entry.path)})"
    return None


def _one_thread() -> None:
    """Contracts run models so small that more threads only wait for each other."""
    import torch

    torch.set_num_threads(1)


def _where(problem: Exception, path: Path | None) -> str:
    """The innermost line of the method's own file, or of any where it has no part in it."""
    frames = traceback.extract_tb(problem.__traceback__)
    frame = next((f for f in reversed(frames) if path is not None and Path(f.filename) == path), frames[-1])
    return f"{Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
