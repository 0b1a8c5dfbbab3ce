"""Write docs/engines.md and docs/engines.svg from the ledger of `lithe bench --suite engines`.

    make engines       (measures, then writes; some minutes a model on a machine that does nothing else)

Every model and precision is a run of its own. Those that the ledger holds of this very code are not run again: after Ctrl-C,
or on a busy day, `make engines` goes on. `--only`, `--model` and `--rounds` choose.
"""

from __future__ import annotations

import argparse
import html
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from lithe.bench.engines import BEHIND, ENGINES, LITHE, LLAMA, LONG, MACHINE, PRECISIONS, PROMPT, ROWS, TRANSFORMERS
from lithe.bench.engines._rows import ratios, speeds
from lithe.bench.engines._suite import Cell, named
from lithe.bench.ledger import Ledger, Record
from lithe.bench.provenance import code_hash
from lithe.model.config import Config

DOCS = Path(__file__).resolve().parent.parent / "docs"
LEDGER, PAGE, PICTURE = DOCS / "ledger-engines.jsonl", DOCS / "engines.md", DOCS / "engines.svg"
HEADS = ("tokens/s", "prefill tokens/s", *(f"T({n}) ms" for n in ROWS), f"T(1) at {LONG:,} ms", "start s", "peak MB", "loss")
MODELS = ("shape:135m", "zoo:tiny")
COLOURS = {LITHE: "#d9480f", LLAMA: "#1971c2", TRANSFORMERS: "#868e96"}
Book = dict[str, dict[str, list[Record]]]  # model -> precision -> the newest run's records


def newest(records: Iterable[Record]) -> Book:
    """Of each model and precision the last run, all its engines."""
    book: Book = {}
    for record in records:
        if record.suite == "engines":
            held = book.setdefault(record.model, {}).setdefault(record.measured["precision"], [])
            if held and held[0].settings["run"] != record.settings["run"]:
                held.clear()
            held.append(record)
    return book


def cell(record: Record) -> Cell:
    return Cell(**{name: record.measured[name] for name in ("engine", "precision", "facts", "samples", "error")})


def page(book: Book) -> str:
    first = next(record for by in book.values() for records in by.values() for record in records)
    parts = [INTRODUCTION.format(cpu=first.machine["cpu"], features=", ".join(first.machine["features"]), threads=first.threads,
                                 behind=BEHIND, long=LONG, prompt=PROMPT, versions=_versions(book))]
    for model, by in book.items():
        by = {precision: by[precision] for precision in PRECISIONS if precision in by}
        config = Config.from_json(next(iter(by.values()))[0].measured["config"])
        parts += [f"## {model}", _shape(config), _ratios(by, config), _bounds(by, config), _numbers(by), _memory(by), _loss(by)]
        parts += _marks(by)
    return "\n\n".join(part for part in parts if part) + "\n"


INTRODUCTION = """# lithe beside other engines

Written by `make engines` from `docs/ledger-engines.jsonl`; the numbers of every round are there.

{cpu} ({features}), {threads} threads. {versions}.

Every engine runs in a process of its own, on the same weights, and they take turns: a task by each of them, then the next task,
round after round, so that what is compared ran within a second or two. Figures are medians over the rounds; ratios are medians
of each round's ratio, with 95 % bootstrap intervals. Before and after each round the machine is listened to (fork and join of
all threads); rounds during which something else ran are left out and counted.

- **tokens/s**: greedy, behind a prompt of {behind} tokens, the prompt's own pass left out. lithe: its plain decoding loop.
  transformers: `generate`. llama.cpp: `llama_decode` through its C interface and the largest logit.
- **T(n)**: one pass over n rows behind {behind} tokens with the logits of all of them, rolled back afterwards.
- **prefill**: {prompt} tokens with the last row's logits. **start**: from the start of a process to its first token.
- lithe: int8 and int4 with a scale per 32 weights, as in Q8_0 and Q4_0. llama.cpp: no mmap, weights repacked as it likes,
  a prompt in one batch, half-precision cache, flash attention on or off, whichever is faster. transformers: sdpa, eager, no
  gradients, dynamic cache. All have the same number of threads.

![T(n)](engines.svg)"""


def _versions(book: Book) -> str:
    found = {record.measured["facts"].get("version") for by in book.values() for records in by.values() for record in records}
    return ", ".join(sorted(filter(None, found)))


def _shape(config: Config) -> str:
    tied = "tied" if config.tied else "untied"
    return (f"Width {config.width}, {config.layers} layers, {config.heads} query and {config.kv_heads} key-value heads of "
            f"{config.head_dim}, FFN {config.ffn}, vocabulary {config.vocab:,}, {tied}.")


def _ratios(by: dict[str, list[Record]], config: Config) -> str:
    """A line a ratio, a column a precision."""
    found = {precision: ratios([cell(r) for r in records], config) for precision, records in by.items()}
    names = dict.fromkeys(name for each in found.values() for name in each if "bound" not in name)
    rows = [[name, *(str(found[precision].get(name, "")) for precision in by)] for name in names]
    return _table(["lithe's ratio", *map(_both, by)], rows)


def _bounds(by: dict[str, list[Record]], config: Config) -> str:
    found = {precision: ratios([cell(r) for r in records], config) for precision, records in by.items()}
    of = lambda precision, n: str(found[precision].get(f"T({n}) against the machine's bound", ""))
    rows = [[f"T({n})", *(of(precision, n) for precision in by)] for n in ROWS]
    measured = [speeds(cell(record)) | {"precision": precision} for precision, records in by.items() for record in records
                if record.measured["engine"] == MACHINE]
    said = "; ".join(f"{m['precision']}: {m['GB/s']:.1f} GB/s, {m['Gop/s']:.0f} Gop/s" for m in measured if "GB/s" in m)
    if not said or not any(any(row[1:]) for row in rows):
        return ""
    return ("A whole pass over the least time that this machine could take: the larger of bytes (packed weights, cached keys\n"
            "and values) over measured bandwidth, and operations (products at the peak of their kind, attention at that of\n"
            f"fp32) over measured peaks. Bandwidth is that of reading as many bytes as the weights have: {said}.\n\n"
            + _table(["pass", *by], rows))


def _numbers(by: dict[str, list[Record]]) -> str:
    rows = []
    for each in _cells(by):
        found = speeds(each)
        rows.append([each.engine, named(each), *(f"{found[head]:.4g}" if head in found else "" for head in HEADS)])
    return _table(["engine", "", *HEADS], rows)


def _memory(by: dict[str, list[Record]]) -> str:
    """Where lithe's peak goes: what is left is the program's own."""
    machine = {p: cell(r) for p, records in by.items() for r in records if r.measured["engine"] == MACHINE}
    rows = []
    for each in _cells(by):
        facts, own = each.facts, machine.get(each.precision)
        if each.engine != LITHE or own is None or "peak_mb" not in facts:
            continue
        alone = own.facts.get("import_torch_mb", 0.0)
        rest = facts["peak_mb"] - facts["weights_mb"] - facts["cache_mb"] - alone
        started = speeds(each).get("start s", math.nan) - speeds(own).get("import torch s", math.nan)
        parts = (facts["peak_mb"], facts["weights_mb"], facts["cache_mb"], alone, rest)
        rows.append([named(each), *(f"{part:.0f}" for part in parts),
                     f"{speeds(own).get('import torch s', math.nan):.2f}", f"{started:.2f}"])
    return _table(["lithe", "peak MB", "weights", "cache", "`import torch` alone", "rest", "`import torch` s",
                   "start beyond it s"], rows) if rows else ""


def _loss(by: dict[str, list[Record]]) -> str:
    """What a format costs in nats a token on the shipped prompts, which no zoo model was trained on."""
    found = {(each.engine, each.precision): speeds(each)["loss"] for each in _cells(by) if each.samples.get("loss")}
    rows = []
    for engine in ENGINES:
        plain = found.get((engine, "fp32"))
        more = lambda loss, plain=plain: f" ({loss - plain:+.4f})" if plain else ""
        row = [f"{found[engine, p]:.4f}{more(found[engine, p])}" if (engine, p) in found else "" for p in by]
        rows += [[engine, *row]] if any(row) else []
    tokens = next((each.facts["loss_tokens"] for each in _cells(by) if "loss_tokens" in each.facts), 0)
    return (f"Loss on {tokens:,} held-out tokens, nats each (against the same engine in fp32):\n\n"
            + _table(["engine", *map(_both, by)], rows)) if rows else ""


def _marks(by: dict[str, list[Record]]) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = []
    for precision, records in by.items():
        first = records[0]
        if first.measured["disturbed"]:
            said.append(f"**{precision}: disturbed.** Too few rounds were quiet: believe no time of it.")
        elif left := first.measured["left_out"]:
            kept = len(first.measured["samples"].get("decode", ()))
            said.append(f"{precision}: {left} disturbed rounds left out, {kept} kept of {first.settings['rounds']} asked for.")
        said += [f"{each.engine} {precision}: {each.error}" for each in map(cell, records) if each.error]
    wrong = [f"{each.engine} {named(each)} {each.facts['argmax_same']:.0%}, {each.facts['logit_error']:.2g}"
             for each in _cells(by) if "argmax_same" in each.facts]
    busy = max(each.facts.get("busy_waiting", 0.0) for each in _cells(by))
    said.append(f"While they waited for their turns the engines used at most {busy:.1%} of a processor each.")
    return [*said, "Rows of 64 with the likeliest token of lithe's most precise cell of the same run, and the largest\n"
                   f"difference of logits over the largest logit: {'; '.join(wrong)}."]


def _cells(by: dict[str, list[Record]]) -> list[Cell]:
    return [each for records in by.values() for each in map(cell, records) if each.engine != MACHINE]


def _both(precision: str) -> str:
    its = named(Cell(engine=LLAMA, precision=precision))
    return f"{precision} / {its}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


WIDE, HIGH, LEFT, TOP, GAP = 250, 210, 52, 64, 58  # of a panel, and around it


def picture(book: Book) -> str:
    """T(n) over n, a panel a precision, a row a model; both axes are logarithmic."""
    rows = list(book.items())
    width, height = LEFT + len(PRECISIONS) * (WIDE + GAP), TOP + len(rows) * (HIGH + GAP + 22)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, (engine, colour) in enumerate(COLOURS.items()):
        at = LEFT + 130 * i
        out += [f'<line x1="{at}" x2="{at + 22}" y1="20" y2="20" stroke="{colour}" stroke-width="2.5"/>',
                f'<text x="{at + 28}" y="24">{engine}</text>']
    out.append(f'<text x="{LEFT + 400}" y="24" fill="#555">T(n): milliseconds to verify n rows behind {BEHIND} tokens</text>')
    for row, (model, by) in enumerate(rows):
        top = TOP + row * (HIGH + GAP + 22)
        out.append(f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{html.escape(model)}</text>')
        for column, precision in enumerate(p for p in PRECISIONS if p in by):
            out += _panel(precision, [cell(r) for r in by[precision]], LEFT + column * (WIDE + GAP), top)
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(precision: str, cells: list[Cell], left: int, top: int) -> list[str]:
    curves = {each.engine: {n: found[f"T({n}) ms"] for n in ROWS if f"T({n}) ms" in found}
              for each in cells if each.engine != MACHINE and (found := speeds(each))}
    spent = [ms for curve in curves.values() for ms in curve.values()]
    if not spent:
        return []
    low, high = math.log2(min(spent)) - 0.2, math.log2(max(spent)) + 0.2
    x = lambda n: left + WIDE * math.log2(n) / math.log2(ROWS[-1])
    y = lambda ms: top + 14 + HIGH * (high - math.log2(ms)) / (high - low)
    out = [f'<text x="{left + WIDE / 2:.0f}" y="{top + 6}" text-anchor="middle">{_both(precision)}</text>']
    for n in ROWS:
        out += [f'<line x1="{x(n):.1f}" x2="{x(n):.1f}" y1="{top + 14}" y2="{top + 14 + HIGH}" stroke="#eee"/>',
                f'<text x="{x(n):.1f}" y="{top + HIGH + 30}" text-anchor="middle" fill="#555">{n}</text>']
    for power in range(math.ceil(low), math.floor(high) + 1):
        ms = 2.0**power
        out += [f'<line x1="{left}" x2="{left + WIDE}" y1="{y(ms):.1f}" y2="{y(ms):.1f}" stroke="#eee"/>',
                f'<text x="{left - 5}" y="{y(ms) + 4:.1f}" text-anchor="end" fill="#555">{ms:g}</text>']
    for engine, curve in curves.items():
        points = " ".join(f"{x(n):.1f},{y(ms):.1f}" for n, ms in curve.items())
        out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[engine]}" stroke-width="2.5"/>')
        out += [f'<circle cx="{x(n):.1f}" cy="{y(ms):.1f}" r="3" fill="{COLOURS[engine]}"/>' for n, ms in curve.items()]
    return out


def measure(only: list[str], models: list[str], rounds: int) -> None:
    """Run what the ledger does not hold of this code: a cell that was disturbed counts as not held."""
    done = {(record.model, record.measured["precision"]) for record in (Ledger(LEDGER).read() if LEDGER.exists() else ())
            if record.suite == "engines" and record.code_hash == code_hash() and not record.measured["disturbed"]}
    for model in models:
        for precision in only:
            if (model, precision) not in done:
                subprocess.run([sys.executable, "-m", "lithe", "bench", model, "--suite", "engines", "--precision", precision,
                                "--rounds", str(rounds), "--ledger", str(LEDGER)], check=True)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--measure", action="store_true", help="run what the ledger does not hold of this code, then write")
    asked.add_argument("--only", action="append", choices=PRECISIONS, help="a precision; repeats")
    asked.add_argument("--model", action="append", choices=MODELS, help="a model; repeats")
    asked.add_argument("--rounds", type=int, default=9)
    options = asked.parse_args()
    if options.measure:
        measure(options.only or list(PRECISIONS), options.model or list(MODELS), options.rounds)
    book = newest(Ledger(LEDGER).read())
    if not book:
        sys.exit(f"{LEDGER} holds no records of the suite; run: make engines")
    PAGE.write_text(page(book), encoding="utf-8")
    PICTURE.write_text(picture(book), encoding="utf-8")


if __name__ == "__main__":
    main()
