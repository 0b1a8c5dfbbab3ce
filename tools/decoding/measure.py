"""Measure every decoding method on every task, greedy and sampled, into the ledger.

    tools/decoding/measure.py [--ledger FILE] [--only greedy|sampled|editing] [--each N] [--max-tokens N]

Every prompt is run by all methods before the next one is, so a whole run is one comparison. Some methods change the output:
their rows say so. Needs a machine that does nothing else; half an hour on two cores.
"""

import argparse
import tomllib
from pathlib import Path

import prompts

import lithe
from lithe.bench.ledger import Ledger
from lithe.bench.runner import bench
from lithe.cli._common import read_kinds
from lithe.cli._measure import progress
from lithe.tune.rack import Rack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LEDGER, WORK = ROOT / "docs" / "ledger-decoding.jsonl", ROOT / ".lithe" / "decoding"
MODEL, EDITOR = "zoo:tiny", ROOT / "lithe" / "zoo" / "tiny-editor"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--only", choices=tuple(PARTS), action="append")
    asked.add_argument("--each", type=int, default=10, help="prompts of a task")
    asked.add_argument("--max-tokens", type=int, default=64)
    given = asked.parse_args()
    prompts.main([str(WORK), "--each", str(given.each)])
    for part in given.only or PARTS:
        PARTS[part](Ledger(given.ledger), given.max_tokens)


def methods(part: str) -> list[str]:
    """The specs of methods.toml that belong to a part; a method without `parts` to all but editing."""
    listed = tomllib.loads((HERE / "methods.toml").read_text(encoding="utf-8"))["method"]
    return [each["spec"] for each in listed if part in each.get("parts", ("greedy", "sampled"))]


def greedy(ledger: Ledger, most: int) -> None:
    _run("greedy", lithe.load(MODEL), "tasks.jsonl", ledger, most)


def sampled(ledger: Ledger, most: int) -> None:
    _run("sampled", lithe.load(MODEL), "tasks.jsonl", ledger, most, temperature=1.0)


def editing(ledger: Ledger, most: int) -> None:
    """tiny with the shipped adapter merged: a model that corrects its prompt."""
    model = lithe.load(MODEL)
    lithe.attach(model, EDITOR)
    Rack.of(model).merge(EDITOR.name)
    model.source = f"{MODEL} + {EDITOR.name}"
    _run("editing", model, "editing.jsonl", ledger, 2 * most)


def _run(part: str, model, file: str, ledger: Ledger, most: int, **settings) -> None:
    asked = read_kinds(WORK / file)
    with progress(part) as tell:
        rows = bench(model, methods(part), [prompt for prompt, _ in asked], kinds=[kind for _, kind in asked], max_tokens=most,
                     part=part, ledger=ledger, progress=tell, **settings)
    for row in rows:
        if row.error:
            print(f"{part}: {row.method} failed: {row.error}")


PARTS = {"greedy": greedy, "sampled": sampled, "editing": editing}

if __name__ == "__main__":
    main()
