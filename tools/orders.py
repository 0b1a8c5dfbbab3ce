"""The orders that papers report, in tokens a pass, each with its interval: docs/log/decode/orders.md.

    tools/orders.py [--limit N] [--max-tokens N] [--only ROW ...] [--heads DIR] [--tasks FILE] [--missing] [--page]

Every method of tools/orders.toml runs on the same shipped prompts, several side by side; only tokens and passes are counted,
no time. What was counted once with this code is kept in .lithe/orders and not counted again. Each order appends a record to
docs/ledger-orders.jsonl; --missing leaves out those that are there, of whatever code; --page only writes the page from the
ledger's latest. HEADS in a spec is the folder of --heads; an order whose weights or prompts (--tasks, which
tools/decoding/prompts.py makes) are not there is left out and said.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

import lithe
from lithe.bench import stats
from lithe.bench.ledger import Ledger, Record
from lithe.bench.provenance import code_hash, record
from lithe.cli._common import read_kinds
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import LitheError
from lithe.model.load import ZOO
from lithe.sampling.law import Law

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DOCS, KEPT = ROOT / "docs", Path(".lithe") / "orders"
LEDGER, PAGE = DOCS / "ledger-orders.jsonl", DOCS / "log" / "decode" / "orders.md"
MODEL, SIDE = "zoo:tiny", 10  # prompts decoded side by side
LONG = 700  # of the shipped models' 1,024
HEAD = """# Orders that papers report

Written by `python tools/orders.py` from `docs/ledger-orders.jsonl`: `{model}` where no other model is named, the first shipped
prompts (how many, and tokens of each, in the second column), tokens a pass (1.00 is plain decoding), the difference and its
95 % bootstrap interval over prompts, paired. No time was measured, so this says nothing of speed. *True*: the interval lies
above 0; *contradicted*: below; *open*: it holds 0. Beside it stands the difference over prompts whose texts do not loop, and
their number: a loop is easy to draft. More, counted earlier by hand: [trees](tree_policies.md), [EAGLE and its kin](eagle.md),
[blending](blend.md).

"""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--limit", type=int, default=40)
    asked.add_argument("--max-tokens", type=int, default=64)
    asked.add_argument("--only", type=int, nargs="+", help="rows of papers.toml")
    asked.add_argument("--heads", type=Path, default=Path(".lithe") / "heads")
    asked.add_argument("--tasks", type=Path, default=Path(".lithe") / "decoding" / "tasks.jsonl")
    asked.add_argument("--missing", action="store_true")
    asked.add_argument("--page", action="store_true")
    given = asked.parse_args()
    if not given.page:
        count(given)
    PAGE.write_text(page(Ledger(LEDGER).read()), encoding="utf-8")


def count(given: argparse.Namespace) -> None:
    """Count both sides of every order and append what came out."""
    models: dict[str, Any] = {}
    ledger, shipped = Ledger(LEDGER), read_kinds(ZOO / "prompts" / "mixed.jsonl")
    known = {which(r) for r in ledger.read()} if given.missing else set()
    for order in tomllib.loads((HERE / "orders.toml").read_text(encoding="utf-8"))["order"]:
        name = order.get("model", MODEL)
        if (given.only and order["row"] not in given.only) or (order["claim"], order["temperature"], name) in known:
            continue
        model = models[name] = models.get(name) or lithe.load(name)
        if order.get("tasks") and not given.tasks.is_file():
            print(f"left out: {order['claim']}: tools/decoding/prompts.py makes {given.tasks}", flush=True)
            continue
        asked = read_kinds(given.tasks) if order.get("tasks") else shipped
        texts = [text for text, kind in asked if kind in order.get("kinds", [kind])]
        prompts = (long(model, texts) if order.get("long") else texts)[: given.limit]
        sides = [order[side].replace("HEADS", str(given.heads)) for side in ("more", "less")]
        try:
            more, less = (counted(model, spec, prompts, given.max_tokens, order["temperature"]) for spec in sides)
        except LitheError as problem:
            print(f"left out: {order['claim']}: {problem}", flush=True)
            continue
        measured = {"row": order["row"], "claim": order["claim"], "less": order["less"], "temperature": order["temperature"],
                    "prompts": len(prompts)} | compared(more, less)
        made = plan(model, draft=sides[0])
        ledger.append(record("orders", model, measured=measured, inputs=prompts, settings={"max_tokens": given.max_tokens},
                             seed=0, method=order["more"], knobs=made.knobs, parts=[made.draft, *made.parts]))
        print(f"{order['claim']}: {measured['difference']:+.2f} {measured['interval']}", flush=True)


def which(r: Record) -> tuple:
    """What tells an order from the others."""
    return r.measured["claim"], r.measured["temperature"], r.model


def long(model: Any, prompts: list[str]) -> list[str]:
    """Texts of some LONG tokens: every eighth prompt and those behind it, the last one to be gone on with."""
    texts = []
    for at in range(0, len(prompts), 8):
        text = ""
        for prompt in prompts[at:]:
            text += prompt + "\n\n"
            if len(model.tokenizer.encode(text)) >= LONG:
                texts.append(text.strip())
                break
    return texts


def counted(model: Any, spec: str, prompts: list, tokens: int, temperature: float) -> list[list[float]]:
    """Of each prompt: tokens, passes, and whether its text loops."""
    made, law = plan(model, draft=spec), Law.of(temperature=temperature)
    key = [model.source, spec, temperature, tokens, prompts, code_hash(made.draft, *made.parts)]
    kept = KEPT / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        found = []
        for at in range(0, len(prompts), SIDE):
            batch = [request(model, prompt, law=law, max_tokens=tokens, seed=at + i, ignore_eos=True)
                     for i, prompt in enumerate(prompts[at : at + SIDE])]
            passes = dict.fromkeys((s.number for s in batch), 0)
            for step in run(made, batch):
                passes[step.sequence.number] += 1
            found += [[len(s.tokens), passes[s.number], stats.loops(s.tokens)] for s in batch]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def compared(more: list[list[float]], less: list[list[float]]) -> dict[str, Any]:
    """Tokens a pass of both, the difference and its interval; over texts that do not loop as well."""
    columns = [np.array(side, dtype=float)[:, n, None] for side in (more, less) for n in (0, 1)]
    calm = [i for i, (a, b) in enumerate(zip(more, less, strict=True)) if not (a[2] or b[2])]
    told: dict[str, Any] = {"tokens_per_pass": _rate(*columns[:2]), "less_tokens_per_pass": _rate(*columns[2:])}
    told |= {"difference": _round(apart(*columns)), "interval": _interval(columns), "calm_prompts": len(calm)}
    if len(calm) > 1:
        calmly = [column[calm] for column in columns]
        told |= {"calm_difference": _round(apart(*calmly)), "calm_interval": _interval(calmly)}
    return told


def apart(tokens, passes, less_tokens, less_passes):
    total = lambda column: column.sum((-2, -1))
    return total(tokens) / total(passes) - total(less_tokens) / total(less_passes)


def _rate(tokens, passes) -> float:
    return _round(tokens.sum() / passes.sum())


def _interval(columns) -> list[float]:
    return [_round(end) for end in stats.interval(apart, *columns) or (0.0, 0.0)]


def _round(value) -> float:
    return round(float(value), 3)


def page(records: list[Record]) -> str:
    latest = {which(r): r for r in records if r.suite == "orders"}
    if not latest:
        return HEAD.format(model=MODEL)
    rows = sorted(latest.values(), key=lambda r: (r.measured["row"], r.measured["claim"], r.measured["temperature"]))
    lines = ["| row | prompts | order | temperature | tokens a pass | difference | not looping | |",
             "|--:|--:|---|--:|--:|--:|--:|---|"]
    for r in rows:
        m = r.measured
        on = "" if r.model == MODEL else f" (`{r.model}`)"
        calm = f"{_span(m['calm_difference'], m['calm_interval'])}, {m['calm_prompts']}" if "calm_difference" in m else "-"
        lines.append(f"| {m['row'] or ''} | {m['prompts']} x {r.settings['max_tokens']} | "
                     f"{m['claim']}{on}: `{r.method}` over `{m['less']}` | {m['temperature']:g} | "
                     f"{m['tokens_per_pass']:.2f}, {m['less_tokens_per_pass']:.2f} | {_span(m['difference'], m['interval'])} | "
                     f"{calm} | {verdict(m['interval'])} |")
    return HEAD.format(model=MODEL) + "\n".join(lines) + "\n"


def _span(value: float, interval: list[float]) -> str:
    return f"{value:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"


def verdict(interval: list[float]) -> str:
    low, high = interval
    return "true" if low > 0 else "contradicted" if high < 0 else "open"


if __name__ == "__main__":
    main()
