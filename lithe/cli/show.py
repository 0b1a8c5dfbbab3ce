"""Tell all about one method or paper."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Annotated, Any

import typer

from lithe import cli, papers, registry
from lithe.card import NEEDS, PROMISES
from lithe.cli._common import JSON, emit, table
from lithe.cli.methods import lossless, record
from lithe.errors import UsageError
from lithe.papers import Paper
from lithe.registry import Entry, entries, find, near

GROUP = "look up"
MODEL, PROMPT = "zoo:tiny", '"Once upon a time"'
MASKED, PROBLEM = "zoo:tiny-diffusion-long", '"reverse : ant bear cat deer _ _ =" --max-tokens 8'
SPECIAL = {"blocks": "zoo:tiny-block", "experts": "zoo:tiny-diffusion-moe"}  # shipped models that have what a method needs
SERVED = (("serve", "schedule"), ("attention", "share"))  # shelves that `lithe serve` has an option for


def command(
    name: Annotated[str, typer.Argument(help="a method, its address or file, or a row's number or id in papers.toml")],
    as_json: JSON = False,
) -> None:
    """Show a method's card, promises, knobs, use, paper and measurements; or a paper, built or only planned."""
    methods, paper = look_up(name)
    if as_json:
        emit({"paper": paper and dataclasses.asdict(paper), "methods": [describe(e) for e in methods]})
        return
    for entry in methods:
        _print_method(describe(entry))
    if paper is not None:
        _print_paper(paper)


def look_up(name: str) -> tuple[list[Entry], Paper | None]:
    """The methods and the paper that a name stands for. Raises UsageError with near names where it stands for none."""
    rows = papers.papers()
    ids = {paper.id: paper for paper in rows.values()}
    if name.isdecimal() or name in ids:
        paper = papers.paper(name)
        return [e for e in entries() if e.card.row == paper.row], paper
    known = {e.name for e in entries()}
    if "/" not in name and not name.endswith(".py") and name not in known:
        raise UsageError(f"there is no method or paper {name!r}{near(name, known | set(ids))}")
    entry = find(name)
    return [entry], rows.get(entry.card.row) if entry.card.row is not None else None


def describe(entry: Entry) -> dict[str, Any]:
    """All that can be said of a method; imports its file for its docstring and knobs."""
    log = registry.ROOT.parent / "docs" / "log" / entry.room / f"{entry.name}.md"
    return {**record(entry), "keeps": lossless(entry), "paper": entry.card.paper, "path": str(entry.path),
            "doc": inspect.cleandoc(entry.module.__doc__ or ""), "knobs": knobs(entry), "use": use(entry),
            "log": log.read_text(encoding="utf-8") if log.is_file() else None}


def knobs(entry: Entry) -> list[dict[str, Any]]:
    """Name, type, default, range and help of every knob."""
    kinds = typing.get_type_hints(entry.module.Knobs)
    return [{"name": field.name, "type": inspect.formatannotation(kinds[field.name]),
             "default": None if field.default is dataclasses.MISSING else field.default,
             "low": field.metadata.get("low"), "high": field.metadata.get("high"),
             "choices": list(field.metadata.get("choices", ())), "help": field.metadata.get("help", "")}
            for field in dataclasses.fields(entry.module.Knobs)]


def use(entry: Entry) -> str | None:
    """A command line that runs the method, None where no verb takes it yet."""
    spec = entry.name if [e.name for e in entries()].count(entry.name) == 1 else entry.address
    spec = str(entry.path) if entry.card.shelf else spec
    if entry.card.takes:  # an acceptance rule: with a draft whose trees it takes
        draft = next((e.name for e in entries(entry.room) if e.card.emits and set(e.card.emits) <= set(entry.card.takes)), None)
        chosen = "" if "same_tokens" in entry.card.promises else f" --temperature 0.8 --method {spec}"  # greedy: the plan's own
        return draft and f"lithe generate {MODEL} {PROMPT} --method {draft}{chosen}"
    if entry.room == "compress":
        return _compress(entry)
    if (entry.room, entry.shelf) in SERVED:
        return f"lithe serve {MODEL} --{entry.shelf} {spec}"
    if entry.shelf == "constrain":
        return f"lithe generate {MODEL} {PROMPT} --constrain '{spec} @FILE'"
    if entry.shelf == "distill":
        return f"lithe fit {MASKED} --method {spec} --data tasks:copy,reverse,sort -o sharper"
    if entry.room == "diffuse":
        masked = next((model for need, model in SPECIAL.items() if need in entry.card.needs), MASKED)
        return f"lithe generate {masked} {PROBLEM} --method {spec}"
    if entry.room in ("decode", "sampling"):
        return f"lithe generate {MODEL} {PROMPT} --method {spec}"
    return f"lithe {entry.room} {MODEL} --method {spec}" if entry.room in cli.verbs() else None


def _compress(entry: Entry) -> str:
    """A step that the method takes part in: its name alone stands for all parts of a paper."""
    step = f"{entry.name}:{'bits=4' if entry.shelf == 'quantize' else 'ratio=0.3'}"
    if entry.shelf == "recover":
        step = f"recover={entry.name}"
    elif entry.shelf == "allocate" and [e.name for e in entries("compress")].count(entry.name) == 1:
        scored = next((e.name for e in entries("compress", "importance") if e.card.row is None), "IMPORTANCE")
        step = f"'{scored}:ratio=0.3 + {entry.name}'"
    return f"lithe compress {MODEL} --method {step} --calibration text.txt -o small"


def _print_method(known: dict[str, Any]) -> None:
    print(f"{known['room']}/{known['shelf']}/{known['name']}\n\n{known['doc']}\n")
    print(f"paper      {known['paper']}" + ("" if known["row"] is None else f" (row {known['row']}, {known['status']})"))
    print(f"file       {known['path']}")
    print(f"lossless   {known['keeps']}" + ("" if known["lossless"] else ": it may change what the model says"))
    for label, words, meanings in (("promises", known["promises"], PROMISES), ("needs", known["needs"], NEEDS)):
        for word in words:
            print(f"{label:<10} {word}: {meanings[word]}")
            label = ""
    if known["trains"]:
        print("trains     it has weights to fit before use")
    if known["use"]:
        print(f"use        {known['use']}")
    if known["knobs"]:
        print()
        table(("knob", "default", "range", "help"), [(k["name"], k["default"], _span(k), k["help"]) for k in known["knobs"]])
    if known["log"]:
        print(f"\n{known['log'].strip()}")
    print()


def _print_paper(paper: Paper) -> None:
    print(f"row        {paper.row}, {paper.id}: {paper.title}")
    print(f"kind       {paper.kind}, family {paper.family}, room {paper.room}")
    print(f"status     {paper.status}: {papers.STATUSES[paper.status]}")
    print(f"reading    rests on {papers.CONFIDENCE[paper.confidence]}")
    print(f"claim      {paper.paper_figure}")
    for label, text in (("ours", paper.our_figure), ("deviates", paper.deviations), ("where", ", ".join(paper.where))):
        if text:
            print(f"{label:<10} {text}")


def _span(knob: dict[str, Any]) -> str:
    if knob["choices"]:
        return " | ".join(map(str, knob["choices"]))
    low, high = knob["low"], knob["high"]
    if low is None and high is None:
        return ""
    return f"{low} to {high}" if None not in (low, high) else f"at least {low}" if high is None else f"at most {high}"
