"""Write docs/compression.md and docs/compression.svg from the ledger of `lithe bench --suite compress`.

    lithe bench zoo:tiny --suite compress --ledger docs/ledger-compress.jsonl && python tools/compression_page.py
"""

from __future__ import annotations

import dataclasses
import html
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compression_apart import apart, hulls, scratch

from lithe.bench.compress import DENSE, SUITE
from lithe.bench.compress._plan import SHIPPED, Cell, Plan, cells, read
from lithe.bench.compress._rows import Row, rows
from lithe.bench.ledger import Ledger, Record
from lithe.compress.groups import MIXED
from lithe.compress.mixture import parse

DOCS = Path(__file__).resolve().parent.parent / "docs"
LEDGER, PAGE, PICTURE = DOCS / "ledger-compress.jsonl", DOCS / "compression.md", DOCS / "compression.svg"
PLANS = {"zoo:tiny": SHIPPED, "zoo:tiny-draft": SHIPPED.with_name("small.toml")}
COLOURS = {"width": "#d9480f", "channel": "#e8890c", "head": "#e8890c", "half": "#868e96", "entry": "#1971c2",
           "bits": "#2f9e44", "rank": "#9c36b5", MIXED: "#7f5539", "tuned": "#0c8599", DENSE: "#000"}
SAID = {"width": "heads and channels", "channel": "FFN channels", "half": "halves of blocks", "entry": "single weights",
        "bits": "bits", "rank": "rank", MIXED: "several ways under one budget",
        "tuned": "pruned while tuned", DENSE: "dense models"}
INTRODUCTION = """# Ways to compress a model beside each other

Written by `python tools/compression_page.py` from `docs/ledger-compress.jsonl`; each run is a record there: the model is
compressed, saved, loaded again and read. What is run stands in `lithe/bench/compress/*.toml`.

- **bytes**: of the model's files, as a share of the dense model's.
- **more**: nats a token above the dense model's loss on {documents} held-out stories of up to {context} tokens, the mean over
  seeds; a seed draws the calibration text, and whatever the method draws.
- **gains**: by how much less that is than what the method is judged **against** loses, with a 95 % interval: bootstrap, paired,
  over documents and over seeds (a seed for all documents at once). **better** and **worse**: the interval leaves out zero,
  at bytes no more than 1 % above the other's; with one seed it covers documents alone.
- **twin**: the same function with outlier channels, whose logits are the dense model's."""
BITS = (("rtn, 4.1 bits", "gptq, 4.1 bits"), ("rtn, 4.1 bits", "gptq and pv-tuning, 4.1 bits"),
        ("rtn, 4.3 bits", "gptq by the program, 4.3 bits"), ("gptq, 2.1 bits", "pv-tuning, 2.1 bits"))
READ = {"zoo:tiny-draft": "20.6 M tokens of the zoo's texts, 18 % of the rows stories"}
CLAIMS = (  # row of papers.toml, what it claims, what it claims to beat
    (1, "cfsp", "channels by wanda-sp"),
    (1, "cfsp", "flap"),
    (1, "cfsp, then its own", "cfsp, then lora"),
    (8, "sr-ste, 2:4", "straight-through, 2:4"),
    (8, "sr-ste, FFN 1:8", "straight-through, FFN 1:8"),
    (16, "comp", "llm-pruner"),
    (16, "comp", "comp by energy alone"),
    (16, "comp", "comp by random scores"),
    (26, "tyr, uniform", "width by wanda-sp"),
    (26, "tyr, uniform", "llm-pruner"),
    (26, "tyr, uniform", "tyr, one round"),
    (26, "tyr, even", "llm-pruner"),
    (26, "tyr", "llm-pruner"),
    (26, "tyr", "tyr, uniform"),
    (26, "tyr", "tyr, even"),
    (26, "tyr", "tyr on dense inputs"),
    (33, "pv-tuning, 2.1 bits", "gptq, 2.1 bits"),
    (33, "pv-tuning, books alone, 2.1 bits", "pv-tuning begun, 2.1 bits"),
    (33, "pv-tuning, straight-through, 2.1 bits", "pv-tuning, books alone, 2.1 bits"),
    (33, "pv-tuning, 2.1 bits", "pv-tuning, straight-through, 2.1 bits"),
    (33, "pv-tuning, 2.1 bits", "pv-tuning, straight-through at a tenth of the rate, 2.1 bits"),
    (35, "dgq, 4.1 bits", "rtn, 4.1 bits"),
    (36, "progressive gradient flow, FFN 1:8", "sr-ste, FFN 1:8"),
    (37, "atp", "width by wanda-sp, then tuned"),
    (37, "atp, long", "width by wanda-sp, then tuned long"),
    (46, "cbq, 3 bits", "gptq, 3 bits"),
    (46, "cbq, 2 bits by output, block by block", "rtn, 2 bits by output"),
    (46, "cbq, 2 bits by output", "cbq, 2 bits by output, block by block"),
    (46, "cbq, 4-bit inputs, block by block", "rtn, 4-bit inputs"),
    (46, "cbq, 4-bit inputs", "cbq, 4-bit inputs, block by block"),
    (46, "cbq, 4-bit inputs", "cbq, 4-bit inputs, no preparation"),
    (98, "wanda by evopress", "wanda"),
    (98, "wanda by evopress", "wanda by owl"),
    (98, "depth by evopress", "depth by block influence"),
    (98, "3 bits on average, evopress", "3 bits on average, spent evenly"),
    (98, "3 bits on average, evopress", "3 bits on average, integer program"),
    (102, "pela, task and features", "pela, task alone"),
    (102, "pela", "pela, task and features"),
    (102, "pela", "pela, from random pairs"),
    (111, "fast sparse", "gone at once, then tuned"),
    (130, "ecoflap", "wanda"),
    (145, "welore", "svd, shares alike"),
    (145, "welore, pairs tuned", "welore, dense tuned"),
    (145, "welore, as many values of pairs tuned", "welore, dense tuned"),
    (148, "dsnot", "wanda"),
    (161, "pat", "slicegpt, then tuned"),
    (161, "pat, 75 % of bytes, long", "width by wanda-sp at 75 % of bytes, then tuned long"),
    (161, "pat, 75 % of bytes", "width by wanda-sp at 75 % of bytes, then tuned"),
    (162, "adaquant, 3 bits", "gptq, 3 bits"),
    (162, "3 bits on average, integer program", "3 bits on average, spent evenly"))


def known(records: list[Record], model: str, plan: Plan) -> dict[Cell, Record]:
    """A model's records by cell, the last of each."""
    names, wanted = [f.name for f in dataclasses.fields(Cell)], set(cells(plan))
    found = {}
    for record in records:
        if record.suite == SUITE and record.model == model and set(names) <= record.settings.keys():
            cell = Cell(**{name: record.settings[name] for name in names})
            if cell in wanted and all(record.settings.get(name) == size for name, size in plan.sizes.items()):
                found[cell] = record
    return found


def verdict(row: Row) -> str:
    if row.low is None or row.high is None:
        return ""
    if not row.same_bytes:
        return "more bytes"
    return "better" if row.low > 0 else "worse" if row.high < 0 else "not told apart"


def gained(row: Row | None) -> str:
    if row is None:
        return "not run"
    if row.gains is None or row.low is None or row.high is None:
        return ""
    return f"{row.gains:+.4f} ({row.low:+.4f} to {row.high:+.4f}), {verdict(row)}"


def table(found: list[Row]) -> str:
    """A line a method and ratio, the plain model and its twin side by side."""
    heads = ("method", "ratio", "bytes", "more", "KL", "against", "gains", "twin: more", "twin: gains", "seeds")
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --: |" * (len(heads) - 1)]
    by = {(row.method, row.ratio, row.on): row for row in found}
    for method, ratio in dict.fromkeys((row.method, row.ratio) for row in found):
        plain, twin = by.get((method, ratio, "plain")), by.get((method, ratio, "twin"))
        if plain is None:
            continue
        seeds = str(plain.seeds) + (f", twin {twin.seeds}" if twin and twin.seeds != plain.seeds else "")
        lines.append("| " + " | ".join([
            method, "" if ratio is None else f"{ratio:g}", f"{plain.bytes:.1%}", f"{plain.more:+.4f}", f"{plain.kl:.4f}",
            plain.against, gained(plain), f"{twin.more:+.4f}" if twin else "", gained(twin) if twin else "", seeds]) + " |")
    return "\n".join(lines)


def section(model: str, plan: Plan, found: dict[Cell, Record]) -> list[str]:
    dense = next((record for cell, record in found.items() if cell.method == DENSE and cell.on == "plain"), None)
    if dense is None:
        return []
    failed = sorted({(cell.method, record.measured["error"]) for cell, record in found.items() if "error" in record.measured})
    missing = [cell for cell in cells(plan) if cell not in found]
    told = [f"## {model}", f"Dense: {dense.measured['bytes']:,} bytes, loss {dense.measured['loss']:.4f}. Calibrated on "
            f"{plan.tokens:,} tokens of {plan.calibration} where the plan does not say more.", table(rows(found, plan))]
    told += [f"Did not run: {name}: {why}" for name, why in failed]
    if missing:
        begun = {cell.method for cell in found}
        names = list(dict.fromkeys(cell.method for cell in missing))
        never, partly = ("; ".join(name for name in names if (name in begun) is ran) or "none" for ran in (False, True))
        told += [f"Of the plan's {len(found) + len(missing)} runs {len(missing)} are missing.",
                 f"- Not run at all: {never}.\n- Seeds or models missing of: {partly}."]
    return told


def bits(found: dict[Cell, Record], plan: Plan) -> list[str]:
    """What the low-bit methods take off the increase of those that they are judged by."""
    by = {row.method: row for row in rows(found, plan) if row.on == "plain"}
    dense = next((r.measured["loss"] for c, r in found.items() if (c.method, c.on) == (DENSE, "plain")), math.nan)
    lines = [f"- {name}: {by[name].more:+.4f} nats, {by[name].more / dense:.2%} of the loss; of what {other} adds "
             f"({by[other].more:+.4f}) {1 - by[name].more / by[other].more:.0%} is gone."
             for other, name in BITS if {other, name} <= by.keys()]
    return ["## Low bits", "\n".join(lines)] if lines else []


def rivals(made: list[tuple[str, str, float, float]]) -> list[str]:
    """Smaller dense models on the same text, beside the best of what takes no more bytes."""
    lines = ["| model | bytes | more | read | best of no more bytes | its bytes | its more |",
             "| --- | --: | --: | --- | --- | --: | --: |"]
    for name, _, size, more in (point for point in made if point[1] == DENSE):
        best = min((way for way in made if way[1] != DENSE and way[2] <= size), key=lambda way: way[3], default=None)
        told = f"{best[0]} | {best[2]:.1%} | {best[3]:+.4f}" if best else "none | |"
        lines.append(f"| {name} | {size:.1%} | {more:+.4f} | {READ.get(name, 'as named')} | {told} |")
    return ["## Dense rivals", "Trained from drawn weights, the one named by its tokens by `tools/compression_dense.py`. "
            "zoo:tiny read 17.3 M tokens, 2.8 M of them stories.", "\n".join(lines)]


def claims(found: dict[str, dict[Cell, Record]], plans: dict[str, Plan]) -> str:
    """Each paper's method beside what its paper compares it with."""
    lines = ["| row | method | beside | model | ratio | gains | twin: gains | seeds |",
             "| --: | --- | --- | --- |" + " --: |" * 4]
    for number, name, rival in CLAIMS:
        told = len(lines)
        for model, own in found.items():
            plan = replace(plans[model], methods=tuple(replace(entry, against=rival) if entry.name == name else entry
                                                       for entry in plans[model].methods))
            both = {cell: record for cell, record in own.items() if cell.method in (DENSE, name, rival)}
            by = {(row.ratio, row.on): row for row in rows(both, plan) if row.method == name and row.gains is not None}
            for ratio in dict.fromkeys(ratio for ratio, _ in by):
                row, twin = by.get((ratio, "plain")), by.get((ratio, "twin"))
                seeds = [str(row.paired)] if row else []
                seeds += [f"twin {twin.paired}"] if twin and (row is None or twin.paired != row.paired) else []
                at = "" if ratio is None else f"{ratio:g}"
                one, two = (gained(found) if found else "" for found in (row, twin))
                lines.append(f"| {number} | {name} | {rival} | {model.removeprefix('zoo:')} | {at} | {one} | {two} "
                             f"| {', '.join(seeds)} |")
        if len(lines) == told:
            lines.append(f"| {number} | {name} | {rival} | | | not run | | |")
    return "\n".join(lines)


def kind(steps: str) -> str:
    """What a way works on."""
    first = parse(steps.split(" ; ")[0]) if steps else None
    return DENSE if first is None else "tuned" if first.recover is not None else first.unit


def picture(points: list[tuple[str, str, float, float]]) -> str:
    """Nats added over bytes, both on log scales: (name, kind, share of tiny's bytes, nats). Named where no point is left of it
    and below."""
    width, height, least, most = 720, 420, 0.001, 3.0
    low, high = min(x for *_, x, _ in points) * 0.9, 1.05
    across = lambda x: 60 + (width - 90) * math.log(x / low) / math.log(high / low)
    down = lambda y: 20 + (height - 60) * math.log(most / min(max(y, least), most)) / math.log(most / least)
    title = "nats a token added to the loss, by bytes of the files (share of zoo:tiny)"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 140}" height="{height}" font-family="sans-serif" '
           'font-size="11">', f'<text x="60" y="12">{title}</text>']
    out += [f'<line x1="60" x2="{width - 30}" y1="{down(y):.0f}" y2="{down(y):.0f}" stroke="#ddd"/><text x="54" '
            f'y="{down(y) + 4:.0f}" text-anchor="end">{y:g}</text>' for y in (0.001, 0.01, 0.1, 1)]
    out += [f'<text x="{across(x):.0f}" y="{height - 20}" text-anchor="middle">{x:.0%}</text>'
            for x in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1) if x >= low]
    for name, what, x, y in sorted(points, key=lambda point: -point[3]):
        best = not any(u <= x and v <= y and (u, v) != (x, y) for _, _, u, v in points)
        out.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5" fill="{COLOURS[what]}" '
                   f'fill-opacity="0.8"><title>{html.escape(name)}</title></circle>')
        out += [f'<text x="{across(x) + 5:.1f}" y="{down(y) - 5:.1f}" font-size="9">{html.escape(name)}</text>'] if best else []
    seen = [what for what in SAID if any(what == point[1] for point in points)]
    out += [f'<text x="{width - 10}" y="{40 + 15 * i}" fill="{COLOURS[what]}">{SAID[what]}</text>'
            for i, what in enumerate(seen)]
    return "\n".join([*out, "</svg>"]) + "\n"


def points(found: dict[Cell, Record], plan: Plan, others: dict[str, Record]) -> list[tuple[str, str, float, float]]:
    """Of the plain model, and dense models on the same text."""
    dense = next(r for c, r in found.items() if (c.method, c.on) == (DENSE, "plain"))
    steps = {entry.name: entry.steps[0] for entry in plan.methods}
    label: Callable[[Row], str] = lambda row: row.method + ("" if row.ratio is None else f", {row.ratio:g}")
    made = [(label(row), kind(steps[row.method].replace("{x}", f"{row.ratio or 0:g}").replace("{s}", "0")), row.bytes, row.more)
            for row in rows(found, plan) if row.on == "plain"]
    same = {name: r for name, r in others.items() if r.prompts_hash == dense.prompts_hash}
    return made + [(name, DENSE, r.measured["bytes"] / dense.measured["bytes"], r.measured["loss"] - dense.measured["loss"])
                   for name, r in same.items() if name != dense.model]


def main() -> None:
    records = Ledger(LEDGER).read()
    plans = {model: read(path) for model, path in PLANS.items()}
    found = {model: known(records, model, plan) for model, plan in plans.items()}
    tiny, plan = found["zoo:tiny"], plans["zoo:tiny"]
    dense = {model: record for model, own in found.items() for cell, record in own.items()
             if (cell.method, cell.on) == (DENSE, "plain")}
    if "zoo:tiny" not in dense:
        sys.exit(f"{LEDGER} holds no records of the suite; run: lithe bench zoo:tiny --suite compress --ledger {LEDGER.name}")
    dense |= {record.model: record for record in records if record.suite == SUITE and "trained" in record.measured}
    made = points(tiny, plan, dense)
    parts = [INTRODUCTION.format(documents=plan.documents, context=plan.context), "![loss added by bytes](compression.svg)"]
    parts += ["## What papers claim", "Gains over what each paper compares its method with, in nats a token.",
              claims(found, plans), *scratch(records), *hulls(), *apart()]
    for model, own in found.items():
        parts += section(model, plans[model], own)
        parts += bits(own, plans[model])
        parts += rivals(made) if model == "zoo:tiny" else []
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    PICTURE.write_text(picture(made), encoding="utf-8")


if __name__ == "__main__":
    main()
