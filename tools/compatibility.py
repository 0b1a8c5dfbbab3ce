"""docs/compatibility.md: which drafts, tree policies and acceptance rules go together, found by running every pair.

    python tools/compatibility.py            # writes the page
    python tools/compatibility.py --check    # exit code 1 where the page is not what the methods say

Every pair decodes a few tokens on a two-layer model, greedily or sampled as its rule asks. What is refused is refused by the
plan, and its words stand below the tables.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from lithe import registry
from lithe.contracts.draft import modest, suited
from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan, shapeable
from lithe.errors import LitheError
from lithe.registry import Entry
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
TEXT, TOKENS = [3, 4, 5, 3, 4, 5, 3, 4], 6
HEAD = """# What goes together

Made by `python tools/compatibility.py`, which runs every pair on a small model: **+** it runs; a number is the reason why it
is refused, in the plan's own words below. A rule is also refused for a request of the other kind: greedy rules decide at
temperature 0, sampled ones above it.
"""


def tried(**slots: str) -> str:
    """"" where a combination of specs decodes, else why it is refused. Anything but a refusal is raised."""
    target = small_model()
    try:
        made = plan(target, **slots)
        greedy = made.asked is None or getattr(made.asked, "greedy", True)
        law = Law.of(temperature=0.0 if greedy else 1.0)
        list(run(made, [Sequence(TEXT, limit=TOKENS, context=target.config.context, law=law)]))
    except LitheError as problem:
        return plainly(str(problem), slots)
    return ""


def plainly(reason: str, slots: dict[str, str]) -> str:
    """A refusal without what belongs to this pair alone: names, settings, and what would do instead."""
    for slot, text in slots.items():
        name, what = text.partition(":")[0], {"accept": "the rule", "tree": "the policy"}.get(slot, "the draft")
        for said in (text, name, name.rpartition("/")[2]):
            reason = re.sub(rf"(?<![\w/=]){re.escape(said)}(?![\w/=:])", what, reason)
    return re.sub(r"; (drafts that do|it takes).*", "", re.sub(r", which [^,]* proposes?\b", "", reason))


class Notes:
    """Reasons, numbered as they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def cell(self, reason: str) -> str:
        return str(self.numbers.setdefault(reason, len(self.numbers) + 1)) if reason else "+"


def table(title: str, rows: Iterable[tuple[str, list[str]]], heads: list[str], notes: Notes) -> str:
    lines = [f"\n## {title}\n", f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    lines += [f"| {name} | {' | '.join(map(notes.cell, reasons))} |" for name, reasons in rows]
    return "\n".join(lines) + "\n"


def page() -> str:
    drafts = [entry for entry in registry.entries("decode", "draft") if entry.card.emits or entry.card.laws]
    trees, rules = (registry.entries("decode", shelf) for shelf in ("tree", "accept"))
    named, notes, target = [rule.reference for rule in rules], Notes(), small_model()
    alone = [entry for entry in drafts if entry.card.emits]
    base = suited(shapeable().entry, target)
    made = HEAD
    made += table("Drafts and acceptance rules",
                  ((d.name, [tried(draft=suited(d, target), accept=rule) for rule in named]) for d in alone),
                  [rule.name for rule in rules], notes)
    made += table("Drafts and tree policies",
                  ((d.name, [tried(draft=suited(d, target), tree=policy(t)) for t in trees]) for d in drafts),
                  [t.name for t in trees], notes)
    made += table("Tree policies and acceptance rules, over the baseline draft",
                  ((t.name, [tried(draft=base, tree=policy(t), accept=rule) for rule in named]) for t in trees),
                  [rule.name for rule in rules], notes)
    return made + "\n## Reasons\n\n" + "".join(f"{n}. {reason}\n" for reason, n in notes.numbers.items())


def policy(entry: Entry) -> str:
    """A policy with a small tree, where its size can be chosen."""
    return ":".join(filter(None, [entry.reference, ",".join(f"{k}={v}" for k, v in modest(entry).items())]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, only say whether the page is up to date")
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
