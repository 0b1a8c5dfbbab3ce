"""The card of a zoo model, its README.md: what it read, how it learned, what it is worth, what it writes.

python tools/zoo/card.py tiny: reads the run's log, heldout.json and the exported folder; writes README.md there.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
from export import PACKAGE
from models import MODELS, READINGS, SOURCES, ZooModel

import lithe

DATA = {  # what each source is and under which terms it may be used
    "stories": "TinyStories, 6,147 stories of the set (Eldan and Li 2023); CDLA-Sharing-1.0",
    "books_children": "children's and adventure books from classic-books-markdown; public domain",
    "books_general": "other classic books from classic-books-markdown; public domain",
    "instructions": "Super-NaturalInstructions train (Apache-2.0) and Self-Instruct's seed and user tasks (Apache-2.0)",
    "maths": "GSM8K train, calculator marks removed (Cobbe et al. 2021); MIT",
    "python": "sources of Python's standard library, tests left out; PSF licence",
    "programs": "MBPP tasks 601 to 974 (Austin et al. 2021); CC BY 4.0",
    "plays": "Tiny Shakespeare; public domain",
}
PROMPTS = (
    "Once upon a time, there was a little fox who",
    "The old sailor looked at the sea and",
    "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:",
    "def mean(values):\n",
    "<|user|>\nWrite one sentence about the sun.\n<|assistant|>\n",
)
OPTIMIZERS = {"muon": "Muon for the hidden matrices and AdamW for the rest", "adamw": "AdamW"}
BARS = " ▁▂▃▄▅▆▇█"


def curve(log: list[dict], columns: int = 60) -> str:
    """The training loss as one line of bars with its scale: it needs no picture and no renderer."""
    columns = min(columns, len(log))
    edges = [round(i * len(log) / columns) for i in range(columns + 1)]
    losses = [sum(r["loss"] for r in log[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(losses), max(losses)
    bars = "".join(BARS[round((loss - low) / max(high - low, 1e-9) * (len(BARS) - 1))] for loss in losses)
    return f"{high:.2f} |{bars}| {losses[-1]:.2f} nats a token, from the first step to the last"


def readings(model: ZooModel, runs: list[dict]) -> str:
    """A line a run: what it read, and for how long."""
    lines = []
    for i, (run, reading) in enumerate(zip(runs, READINGS, strict=False)):
        start = "from random weights" if i == 0 else f"from the weights of run {i}"
        optimizer = reading.optimizer or model.optimizer
        lines.append(f"- Run {i + 1}, {start}: {run['tokens'] / 1e6:.1f} million tokens in {run['seconds'] / 60:.0f} minutes, "
                     f"{run['steps']:,} steps of {reading.tokens_per_step:,} tokens; rows of {reading.lengths[0]} tokens, "
                     f"of {reading.lengths[1]} in the decay; {OPTIMIZERS[optimizer.name]}, peak rate {optimizer.lr:g}.")
    return "\n".join(lines)


def shares(source: str, runs: int) -> str:
    return " | ".join(f"{reading.mixture[source]:.0%}" for reading in READINGS[:runs])


def table(found: dict) -> str:
    rival = found.get("rival", {})
    lines = ["| held-out source | bits a byte | Kneser-Ney 5-gram | fewer bits |", "|---|---|---|---|"]
    for source, bits in found["model"].items():
        other = rival.get(source)
        lines.append(f"| {source} | {bits:.3f} | " + (f"{other:.3f} | {1 - bits / other:.1%} |" if other else "– | – |"))
    return "\n".join(lines)


def samples(folder: Path) -> str:
    model, parts = lithe.load(folder), []
    for prompt in PROMPTS:
        for settings in ({}, {"temperature": 0.8}):
            text = "".join(step.text for step in lithe.generate(model, prompt, max_tokens=80, **settings))
            kind = "temperature 0.8" if settings else "greedy"
            parts.append(f"{kind}:\n\n```text\n{prompt}⟫{text}\n```")
    return "\n\n".join(parts)


CARD = """---
license: apache-2.0
language: en
library_name: lithe
---
# {name}

A {millions:.1f} M parameter decoder that lithe's tests and demos run on. It was trained from nothing on one CPU by
`make zoo`. It is a test object: it knows little, says false things, and must not be used to inform or decide anything.

- Layout: Llama, {c.layers} layers, width {c.width}, {c.heads} query and {c.kv_heads} key-value heads, FFN {c.ffn},
  context {c.context}, vocabulary {c.vocab} (byte-level BPE, digits one by one), output matrix tied to the embedding, bf16.
{readings}
- Each run: warm-up, flat, linear decay of the rate to zero.
- Chat: `<|user|>`, `<|assistant|>` and `<|endoftext|>`, as the chat template has them. `<|mask|>` is reserved.

Loss: `{curve}`

## Data

5 % of each source was held out by the hash of its documents.

| source | {columns} | what, terms |
|---|{lines}---|
{data}

## Held-out text

{table}

Both were scored on the same tokens.{rival}

## What it writes

The prompts were chosen before any answer was seen; what follows ⟫ is the model's.

{samples}
"""
RIVAL = """ The rival is an interpolated modified Kneser-Ney model; it counted every token that this model read,
{:.1f} million different ones, each once."""


def card(name: str, zoo: Path, target: Path) -> str:
    model, folder = MODELS[name], zoo / name
    log = [json.loads(line) for line in (folder / "log.jsonl").open()]
    found = json.loads((folder / "heldout.json").read_text())
    runs = found["runs"]
    weights = sum(weight.numel() for weight in lithe.load(target / name, fast=False).parameters())
    return CARD.format(
        name=name, c=model.config, millions=weights / 1e6, readings=readings(model, runs), curve=curve(log),
        columns=" | ".join(f"share of run {i + 1}'s rows" for i in range(len(runs))), lines="---|" * len(runs),
        data="\n".join(f"| {source} | {shares(source, len(runs))} | {DATA[source]} |" for source in SOURCES),
        table=table(found), rival=RIVAL.format(found["rival_tokens"] / 1e6) if "rival_tokens" in found else "",
        samples=samples(target / name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"))
    parser.add_argument("--to", type=Path, default=PACKAGE)
    options = parser.parse_args()
    torch.manual_seed(0)
    path = options.to / options.model / "README.md"
    path.write_text(card(options.model, options.zoo, options.to))
    print(path)
