"""Write docs/tuning.md and docs/tuning.svg from the ledger of `lithe bench --suite tuning`.

    lithe bench zoo:tiny --suite tuning --ledger docs/ledger-tuning.jsonl && python tools/tuning.py
"""

from __future__ import annotations

import html
import math
import sys
from pathlib import Path
from statistics import mean

from lithe.bench.ledger import Ledger, Record
from lithe.bench.tuning import FULL, SUITE
from lithe.bench.tuning._rows import Row, at_equal_loss, rows

DOCS = Path(__file__).resolve().parent.parent / "docs"
LEDGER, PAGE, PICTURE = DOCS / "ledger-tuning.jsonl", DOCS / "tuning.md", DOCS / "tuning.svg"
COLOURS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e8590c", "#0c8599", "#868e96", "#5f3dc4", "#c2255c", "#66a80f")
INTRODUCTION = """# Tuning methods beside tuning all weights

Written by `python tools/tuning.py` from `docs/ledger-tuning.jsonl`; each run is a record there.

A model is tuned on text that it does not know, by each method and by tuning all of its weights, with the same examples, steps,
order and optimizer (AdamW without weight decay, warm-up, cosine). {sizes}

- **gain**: of the loss that tuning all weights takes off held-out text, the share that the method takes off.
- **forgets**: nats a token that held-out text of the old kind ({home}) costs more than before.
- **values**: what the result holds, as a share of the model's weights; **MiB** is what training holds beside the weights:
  gradients, optimizer state, activations, and what a method needs on its way.
- Rates are a grid of factors of about 3, the same for all. The best is chosen on held-out tokens that are not the reported
  ones; **rates** says how many were tried. Where it is one, the gain is a lower bound. All weights: searched on every text.
- One seed where nothing else is said; on these few tokens differences below some 3 points say nothing."""

CURVE = """## The curve

Gain, and nats a token of the old text, by the share of the weights that a method may hold, each at the rate that was best at
1 % on {first}. A dash: it cannot be as small."""
CONTROLS = """## Controls

`lithe bench zoo:tiny-draft --suite tuning --plan lithe/bench/tuning/controls.toml`: bills, 60 steps of 256 tokens, each at its
best of three rates or more, means over seeds. The last column is what tuning all weights had forgotten when it came to the
same loss."""
PRUNING = """## Pruned and tuned

`--plan lithe/bench/tuning/pruned.toml`: the same for 120 steps; `pst` and the fixed mask are 50 % zeros, `dsee` 30 %."""
EQUAL = (("kappa low", "kappa high", "kappa random"), ("cofitune", "cofitune free", "cofitune all"))  # compared by forgetting
SHARE = 0.01  # where rates are searched, and what the tables of each text show
SMALL = "zoo:tiny-draft"
CONTROLLED, PRUNED = 60, 120  # steps, by which the two plans are told apart


def page(records: list[Record]) -> str:
    found = rows(records)
    said = next(record.settings for record in records if record.suite == SUITE)
    sizes = (f"{said['steps']} steps of {said['tokens']} tokens in pieces of {said['context']}; {said['held_out']:,} tokens "
             f"held out for the loss, {said['chosen_by']:,} for the choice of the rate.")
    parts = [INTRODUCTION.format(sizes=sizes, home="TinyStories' own held-out stories")]
    for shift in dict.fromkeys(row.shift for row in found):
        own = [row for row in found if row.shift == shift and row.share in (None, SHARE)]
        full = next((row for row in own if row.method == FULL), None)
        known = "all weights were not tuned"
        if full is not None:
            known = f"all weights take the loss from {full.before:.3f} to {full.after:.3f}"
        parts += [f"## {shift}", f"Here {known}.", table(sorted(own, key=lambda row: (row.share or 0, -(row.gain or 0))))]
    failed = {(r.method, r.measured["error"]) for r in records if r.suite == SUITE and "error" in r.measured}
    parts += [f"Did not run: {name}: {why}" for name, why in sorted(failed)]
    return "\n\n".join([*parts, *curve(found), *speed(records)]) + "\n"


def table(found: list[Row]) -> str:
    heads = ("method", "values", "gain", "forgets", "loss", "rate", "rates", "MiB", "tokens/s")
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --: |" * (len(heads) - 1)]
    for row in found:
        gain = "-" if row.gain is None else f"{row.gain:.0%}"
        quick = "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"
        name = row.method if row.seeds == 1 else f"{row.method} ({row.seeds} seeds)"
        lines.append("| " + " | ".join([
            name, f"{row.values:.2%}", gain, f"{row.forgets:+.3f}", f"{row.after:.3f}", f"{row.rate:g}", str(row.rates),
            f"{row.beside / 2**20:.1f}", quick]) + " |")
    return "\n".join(lines)


def speed(records: list[Record]) -> list[str]:
    """LoRA beside PEFT and transformers' Trainer, from the last record of tools/lora_speed.py."""
    found = [record for record in records if record.suite == "lora-speed"]
    if not found:
        return []
    last, told = found[-1], found[-1].measured
    low, high = told["interval"] or (told["ratio"], told["ratio"])
    quick = told["tokens_per_s"]
    clock = "processor seconds" if last.settings.get("cpu") else "seconds"
    return [f"## LoRA's speed\n\n`python tools/lora_speed.py {last.model}`, {told['tokens']} tokens a step, rank 8, "
            f"{last.precision}, threads: {last.threads}, turn by turn in one run, by {clock}: "
            f"lithe {quick['lithe']:.0f} tokens/s, PEFT {told['peft']} with transformers {told['transformers']}' Trainer "
            f"{quick['peft']:.0f}; ratio "
            f"{told['ratio']:.2f} ({low:.2f} to {high:.2f})" + (", disturbed." if told["disturbed"] else ".")]


def cell(row: Row | None) -> str:
    """A gain and what it cost."""
    return "-" if row is None or row.gain is None else f"{row.gain:.0%}, {row.forgets:+.2f}"


def curve(found: list[Row]) -> list[str]:
    """The shares side by side, a table a shift."""
    shares = sorted({row.share for row in found if row.share is not None})
    shifts = list(dict.fromkeys(row.shift for row in found))
    parts = [CURVE.format(first=shifts[0]), "![gain by share](tuning.svg)"]
    for shift in shifts:
        own = {(row.method, row.share): row for row in found if row.shift == shift}
        full = own.get((FULL, None))
        lines = ["| method | " + " | ".join(f"{share:.1%}" for share in shares) + " |", "| --- |" + " --: |" * len(shares)]
        for name in dict.fromkeys(row.method for row in found if row.share is not None):
            lines.append(f"| {name} | " + " | ".join(cell(own.get((name, share))) for share in shares) + " |")
        small = [f"{row.method} ({row.values:.2%}) {cell(row)}" for (_, share), row in own.items()
                 if share is None and row.method != FULL]
        told = f"All weights: {full.before:.3f} to {full.after:.3f}, {full.forgets:+.2f}. " if full else ""
        parts += [f"### {shift}", told + ("Of one size only: " + "; ".join(small) + "." if small else ""), "\n".join(lines)]
    return parts


def controls(records: list[Record]) -> list[str]:
    """Methods beside their controls: means over seeds, and all weights' forgetting where they had come to the same loss."""
    lines = ["| method | values | seeds | gain | between seeds | forgets | all weights, at that loss |",
             "| --- |" + " --: |" * 6]
    for row in sorted(rows(r for r in records if r.settings.get("steps") == CONTROLLED), key=lambda row: row.method):
        spread = "" if row.spread is None else f"{100 * row.spread:.0f} points"
        other = "" if row.full_forgets is None else f"{row.full_forgets:+.3f}"
        gain = "-" if row.gain is None else f"{row.gain:.0%}"
        lines.append(f"| {row.method} | {row.values:.2%} | {row.seeds} | {gain} | {spread} | {row.forgets:+.3f} | {other} |")
    own = [r for r in records if r.settings.get("steps") == CONTROLLED]
    told = []
    for names in EQUAL:
        if (met := at_equal_loss(own, names))[names[0]]:
            seeds = lambda found: ", ".join(f"{value:+.2f}" for value in found)
            said = "; ".join(f"{name} {mean(found):+.3f} ({seeds(found)})" for name, found in met.items())
            told.append(f"Forgotten at the same loss, the highest that one of them ends at, seed by seed: {said}.")
    return [CONTROLS, "\n".join(lines), *told] if len(lines) > 2 else []


def pruned(records: list[Record]) -> list[str]:
    lines = ["| method | values | seeds | loss | gain | forgets |", "| --- |" + " --: |" * 5]
    for row in rows(r for r in records if r.settings.get("steps") == PRUNED and r.model == SMALL):
        gain = "-" if row.gain is None else f"{row.gain:.0%}"
        lines.append(f"| {row.method} | {row.values:.2%} | {row.seeds} | {row.after:.3f} | {gain} | {row.forgets:+.3f} |")
    return [PRUNING, "\n".join(lines)] if len(lines) > 3 else []


def picture(found: list[Row]) -> str:
    """Gain over the share of the weights, a panel a shift, a line a method with at least two shares."""
    shifts = list(dict.fromkeys(row.shift for row in found))
    names = [name for name in dict.fromkeys(row.method for row in found)
             if len({row.share for row in found if row.method == name and row.gain is not None} - {None}) > 1]
    width, height = 300, 190
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(shifts) + 130}" height="{height + 60}" '
           'font-family="sans-serif" font-size="11">']
    for panel, shift in enumerate(shifts):
        x = lambda share, left=panel * width: left + 45 + 230 * (math.log10(share) + 2.7) / 1.8
        y = lambda gain: 20 + height * (1.1 - max(0.0, min(1.1, gain))) / 1.1
        title = f"{html.escape(shift)}: share of the gain by share of the values"
        out.append(f'<text x="{panel * width + 45}" y="12">{title}</text>')
        out += [f'<text x="{x(share):.0f}" y="{height + 36}" text-anchor="middle">{share:.1%}</text>'
                for share in (0.003, 0.01, 0.03, 0.1)]
        out += [f'<line x1="{x(0.002):.0f}" x2="{x(0.125):.0f}" y1="{y(gain):.0f}" y2="{y(gain):.0f}" stroke="#ddd"/>'
                f'<text x="{x(0.002) - 4:.0f}" y="{y(gain) + 4:.0f}" text-anchor="end">{gain:.0%}</text>'
                for gain in (0, 0.25, 0.5, 0.75, 1)]
        for number, name in enumerate(names):
            own = sorted((row for row in found if (row.method, row.shift) == (name, shift) and row.share is not None
                          and row.gain is not None), key=lambda row: row.values)
            points = " ".join(f"{x(row.values):.1f},{y(row.gain or 0):.1f}" for row in own)
            out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2"/>')
    out += [f'<text x="{width * len(shifts) + 10}" y="{40 + 15 * number}" fill="{COLOURS[number % len(COLOURS)]}">'
            f"{html.escape(name)}</text>" for number, name in enumerate(names)]
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    records, held = (Ledger(DOCS / f"ledger-{name}.jsonl").read() for name in ("tuning", "controls"))
    if not any(record.suite == SUITE for record in records):
        sys.exit(f"{LEDGER} holds no records of the suite; run: lithe bench zoo:tiny --suite tuning --ledger {LEDGER.name}")
    PAGE.write_text("\n\n".join([page(records).rstrip(), *controls(held), *pruned(held)]) + "\n", encoding="utf-8")
    PICTURE.write_text(picture(rows(records)), encoding="utf-8")


if __name__ == "__main__":
    main()
