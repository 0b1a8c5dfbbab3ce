"""Write what the README shows of measurements: its table, its counts, its picture. Everything comes from the ledger.

    make readme        (after `lithe bench zoo:tiny ... --ledger docs/ledger.jsonl`)
"""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from lithe import papers
from lithe.bench.ledger import Ledger, Record
from lithe.cli.demo import perform

ROOT = Path(__file__).resolve().parent.parent
README, LEDGER, PICTURE = ROOT / "README.md", ROOT / "docs" / "ledger.jsonl", ROOT / "docs" / "demo.svg"


def table(records: list[Record]) -> str:
    """The newest undisturbed greedy bench of the zoo's large model: a row a method, looping prompts left out."""
    last: dict[str, Record] = {}
    for record in records:
        if record.suite == "bench" and record.model == "zoo:tiny" and record.settings["law"] == "Law()":
            last[record.method] = record
    rows = [record.measured for record in last.values() if not record.measured["error"]]
    if any(row["disturbed"] for row in rows):
        print("some rows were taken on a disturbed machine: their speeds are left out", file=sys.stderr)
    lines = ["| method | tokens per pass | speed against plain (95 % interval) | same output |", "|---|--:|--:|--:|"]
    for row in rows:
        low, high = row["speedup_nonlooping_interval"]
        speed = "disturbed" if row["disturbed"] else f"{row['speedup_nonlooping']:.2f} x ({low:.2f} to {high:.2f})"
        passes, same = f"{row['tokens_per_pass_nonlooping']:.2f}", f"{row['same']} of {row['of']}"
        lines.append(f"| `{row['method']}` | {passes} | {speed} | {same} |")
    first = next(iter(last.values()))
    lines.append(f"""
`zoo:tiny` (11 M parameters, trained here), {first.machine['cpu']}, {first.threads} threads, {first.precision}, greedy,
{rows[0]['of']} real prompts, {first.settings['max_tokens']} tokens each. Prompts on which plain decoding loops
({rows[0]['looping']:.0%}) are left out of the first two figures: loops flatter every draft.""")
    return "\n".join(lines)


def counts() -> str:
    """How many of the papers are in which state."""
    states = Counter(paper.status for paper in papers.papers().values())
    said = ", ".join(f"{states[state]} {state}" for state in ("measured", "mechanism", "refuted", "planned") if states[state])
    return f"Of {sum(states.values())} published systems that lithe is to hold: {said}. `lithe methods` lists what is built."


def put(text: str, mark: str, new: str) -> str:
    """Replace what stands between <!-- mark --> and <!-- /mark -->."""
    found = re.subn(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL)
    if not found[1]:
        raise SystemExit(f"README.md has no place <!-- {mark} -->")
    return found[0]


def picture() -> str:
    """The demo on one prompt, as a terminal shows it."""
    console = Console(record=True, force_terminal=True, color_system="truecolor", width=108, highlight=False,
                      file=io.StringIO())
    perform(console, "zoo:tiny", "demo", max_tokens=80, kinds=("story",))
    return console.export_svg(title="lithe demo", theme=MONOKAI)


def main() -> None:
    PICTURE.write_text(picture(), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    text = put(text, "counts", counts())
    text = put(text, "table", table(Ledger(LEDGER).read()))
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
