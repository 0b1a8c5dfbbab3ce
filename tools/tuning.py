"""Write docs/tuning.md and docs/tuning.svg from the ledger of `lithe bench --suite tuning`.

    lithe bench zoo:tiny --suite tuning --ledger docs/ledger-tuning.jsonl && python tools/tuning.py
"""

from __future__ import annotations

import html
import math
import sys
from pathlib import Path

from lithe.bench.ledger import Ledger, Record
from lithe.bench.tuning import FULL, SUITE
from lithe.bench.tuning._rows import Row, rows

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


def page(records: list[Record]) -> str:
    found = rows(records)
    said = next(record.settings for record in records if record.suite == SUITE)
    sizes = (f"{said['steps']} steps of {said['tokens']} tokens in pieces of {said['context']}; {said['held_out']:,} tokens "
             f"held out for the loss, {said['chosen_by']:,} for the choice of the rate.")
    parts = [INTRODUCTION.format(sizes=sizes, home="TinyStories' own held-out stories")]
    for shift in dict.fromkeys(row.shift for row in found):
        own = [row for row in found if row.shift == shift]
        full = next((row for row in own if row.method == FULL), None)
        known = "all weights were not tuned"
        if full is not None:
            known = f"all weights take the loss from {full.before:.3f} to {full.after:.3f}"
        parts += [f"## {shift}", f"Here {known}.", table(sorted(own, key=lambda row: (row.share or 0, -(row.gain or 0))))]
    failed = {(r.method, r.measured["error"]) for r in records if r.suite == SUITE and "error" in r.measured}
    parts += [f"Did not run: {name}: {why}" for name, why in sorted(failed)]
    curves = picture(found)
    return "\n\n".join([*parts, *(["![gain by share](tuning.svg)"] if curves else []), *speed(records)]) + "\n"


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
    return [f"## LoRA's speed\n\n`python tools/lora_speed.py {last.model}`, {told['tokens']} tokens a step, rank 8, "
            f"{last.precision}, {last.threads} threads, turn by turn in one run: lithe {quick['lithe']:.0f} tokens/s, "
            f"PEFT {told['peft']} with transformers {told['transformers']}' Trainer {quick['peft']:.0f}; ratio "
            f"{told['ratio']:.2f} ({low:.2f} to {high:.2f})" + (", disturbed." if told["disturbed"] else ".")]


def picture(found: list[Row]) -> str:
    """Gain over the share of the weights, a line a method with at least two shares."""
    shift = next((row.shift for row in found if row.method == FULL), "")
    lines: dict[str, list[Row]] = {}
    for row in found:
        if row.shift == shift and row.gain is not None and row.share is not None:
            lines.setdefault(row.method, []).append(row)
    lines = {name: sorted(own, key=lambda row: row.values) for name, own in lines.items() if len(own) > 1}
    if not lines:
        return ""
    x = lambda share: 60 + 440 * (math.log10(share) + 3) / 2.2
    y = lambda gain: 300 - 260 * max(0.0, min(1.1, gain))
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="680" height="350" font-family="sans-serif" font-size="12">',
           f'<text x="60" y="20">gain recovered on {html.escape(shift)} over the share of values that train</text>']
    for share in (0.001, 0.003, 0.01, 0.03, 0.1):
        out.append(f'<text x="{x(share):.0f}" y="320" text-anchor="middle">{share:.1%}</text>')
    for gain in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="60" x2="500" y1="{y(gain):.0f}" y2="{y(gain):.0f}" stroke="#ddd"/>'
                   f'<text x="52" y="{y(gain) + 4:.0f}" text-anchor="end">{gain:.0%}</text>')
    for number, (name, own) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(row.values):.1f},{y(row.gain or 0):.1f}" for row in own)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
                   f'<text x="515" y="{50 + 18 * number}" fill="{colour}">{html.escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    records = Ledger(LEDGER).read()
    if not any(record.suite == SUITE for record in records):
        sys.exit(f"{LEDGER} holds no records of the suite; run: lithe bench zoo:tiny --suite tuning --ledger {LEDGER.name}")
    PAGE.write_text(page(records), encoding="utf-8")
    if drawn := picture(rows(records)):
        PICTURE.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
