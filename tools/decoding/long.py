"""Drafts that read only parts of a long prompt, beside those that read all of it, into the ledger.

    tools/decoding/long.py [--ledger FILE]

Prompts of some 700 tokens: shipped ones one after another, then the first half of one that stands far before, so that
what follows is there to be found. Needs a quiet machine; half a minute.
"""

import argparse
from pathlib import Path

import lithe
from lithe.bench.ledger import Ledger
from lithe.bench.runner import bench
from lithe.cli._common import read_prompts
from lithe.cli._measure import progress
from lithe.model.load import ZOO

LEDGER = Path(__file__).resolve().parent.parent.parent / "docs" / "ledger-decoding.jsonl"
PROMPTS, LENGTH, TOKENS = 8, 700, 32
PARTS = "rapid:budget=256,chunk=32"
METHODS = (PARTS, f"{PARTS},choose=first", f"{PARTS},choose=random", f"{PARTS},model=zoo:tiny-draft", "draft_model:tokens=10",
           "prompt_lookup")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    given = asked.parse_args()
    model = lithe.load("zoo:tiny")
    texts = again(read_prompts(ZOO / "prompts" / "mixed.jsonl"), model.tokenizer)
    with progress("long") as tell:
        rows = bench(model, METHODS, texts, max_tokens=TOKENS, part="long", ledger=Ledger(given.ledger), progress=tell)
    for row in rows:
        print(row.method, row.lossless, row.tokens_per_pass, row.speedup, row.speedup_interval, row.error or "")


def again(shipped: list[str], tokenizer) -> list[str]:
    """Long prompts that end in the middle of what they have said before, a third from their beginning."""
    made = []
    for turn in range(PROMPTS):
        parts: list[str] = []
        for text in shipped[turn * 10 :] + shipped[: turn * 10]:
            if len(tokenizer.encode("\n".join([*parts, text]))) > LENGTH:
                break
            parts.append(text)
        words = parts[len(parts) // 3].split()
        made.append("\n".join([*parts, " ".join(words[: max(6, len(words) // 2)])]))
    return made


if __name__ == "__main__":
    main()
