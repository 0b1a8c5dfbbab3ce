"""Write what the README shows of measurements: its table, its counts, its picture. Everything comes from the ledger.

    make readme        (after `make decoding`)
"""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from lithe import papers
from lithe.bench.ledger import Ledger, Record
from lithe.cli.demo import perform

ROOT = Path(__file__).resolve().parent.parent
README, LEDGER, PICTURE = ROOT / "README.md", ROOT / "docs" / "ledger-decoding.jsonl", ROOT / "docs" / "demo.svg"


SHOWN = 8  # methods


def table(records: list[Record]) -> str:
    """On the greedy prompts of the newest run with enough methods: plain decoding and the fastest that keep its output."""
    sets: dict[tuple[str, str | None], dict[str, Record]] = {}
    for record in records:
        if record.settings.get("part") == "greedy":
            run = record.prompts_hash, record.commit
            sets[run] = sets.pop(run, {}) | {record.method: record}
    last = next(found for found in reversed(sets.values()) if len(found) > SHOWN)
    rows = [record.measured for record in last.values() if record.measured["mean"] is not None and record.measured["lossless"]
            and ".lithe/" not in record.measured["method"]]  # what a reader can run at once
    rows.sort(key=lambda row: (row["method"] != "plain", -row["mean"]))
    lines = ["| method | tokens per pass | speed against plain (95 % interval) | same output |", "|---|--:|--:|--:|"]
    for row in rows[: SHOWN + 1]:
        low, high = row["mean_interval"]
        speed, passes = f"{row['mean']:.2f} x ({low:.2f} to {high:.2f})", f"{row['tokens_per_pass_nonlooping']:.2f}"
        lines.append(f"| `{row['method']}` | {passes} | {speed} | {row['same']} of {row['of']} |")
    first, loops = next(iter(last.values())), rows[0]["looping"]
    lines.append(f"""
`zoo:tiny` (11 M parameters, trained here), {first.machine['cpu']}, {first.threads} threads, {first.precision}, greedy,
nine kinds of real prompts, {first.settings['max_tokens']} tokens each; speeds are means over kinds. Prompts on which plain
decoding loops ({loops:.0%} of these) are left out of the first two figures: loops flatter every draft. From run to run
speeds move by up to a quarter ([what bounds them](docs/log/decode/limits.md)). All methods, by task and
sampled: [docs/decoding.md](docs/decoding.md).""")
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
