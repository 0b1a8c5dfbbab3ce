"""Measure every decoding method on every task, greedy and sampled, into the ledger.

    tools/decoding/measure.py [--ledger FILE] [--only greedy|sampled|editing] [--each N] [--max-tokens N] [--seconds N]

A few methods run beside plain decoding at a time: every prompt by all of them before the next one is. Groups that are in the
ledger for these sources and prompts are not run again; with --seconds no group is begun after so long, and the same command
goes on. Some methods change the output: their rows say so. Needs a machine that does nothing else; a quarter of an hour on
two cores.
"""

import argparse
import json
import sys
import time
import tomllib
from pathlib import Path

import prompts

import lithe
from lithe import registry
from lithe.bench import stats
from lithe.bench.ledger import Ledger
from lithe.bench.measure import measure
from lithe.bench.provenance import code_hash, digest
from lithe.bench.runner import bench
from lithe.cli._common import read_kinds
from lithe.cli._measure import progress
from lithe.decode.budget import costs, pays
from lithe.decode.generate import request
from lithe.decode.heads import likeliest
from lithe.decode.plan import plan
from lithe.model.load import ZOO
from lithe.model.runtime import cost_curve, stored
from lithe.sampling.law import Law
from lithe.train.fitted import NOTES, read_notes
from lithe.tune.rack import Rack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LEDGER, WORK = ROOT / "docs" / "ledger-decoding.jsonl", ROOT / ".lithe" / "decoding"
MODEL, EDITOR = "zoo:tiny", ROOT / "lithe" / "zoo" / "tiny-editor"
GROUP = 5  # methods that run side by side, beside plain decoding
CANDIDATES = 20  # prompts of a task of which some are chosen
LOOPING = 0.4  # share of those chosen on which plain decoding loops
COST = "nodes=cost"  # in methods.toml: as many as pay by the heads' measured rates and T(n) here


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--only", choices=tuple(PARTS), action="append")
    asked.add_argument("--each", type=int, default=3, help="prompts of a task")
    asked.add_argument("--max-tokens", type=int, default=64)
    asked.add_argument("--seconds", type=float, default=float("inf"))
    given = asked.parse_args()
    end = time.monotonic() + given.seconds
    prompts.main([str(WORK), "--each", str(max(CANDIDATES, given.each))])
    ledger, whole = Ledger(given.ledger), True
    for part in given.only or PARTS:
        whole = whole and PARTS[part](ledger, given.each, given.max_tokens, end)
    return 0 if whole else 3


def methods(part: str) -> list[str]:
    """The specs of methods.toml that belong to a part; a method without `parts` to all but editing."""
    listed = tomllib.loads((HERE / "methods.toml").read_text(encoding="utf-8"))["method"]
    return [each["spec"] for each in listed if part in each.get("parts", ("greedy", "sampled"))]


def settled(model, spec: str) -> str | None:
    """The spec with its tree size chosen, where it leaves it to the costs; None where its weights were not made."""
    parsed = registry.parse(spec.split(" + ")[0].replace(COST, "nodes=1").removeprefix("draft="),
                            "draft" if spec.startswith("draft=") else None)
    named = parsed.values.get("heads") or parsed.values.get("model") or ""
    if named.startswith(".lithe") and not (ROOT / named).is_dir():
        print(f"{spec}: not run: there is no {named}; tools/zoo/heads.py makes it", file=sys.stderr)
        return None
    if parsed.entry.card.trains and not named and not (ZOO / "heads" / parsed.entry.name / NOTES).is_file():
        print(f"{spec}: not run: the zoo ships no heads of it", file=sys.stderr)
        return None
    if COST not in spec:
        return spec
    folder = ROOT / named if named else ZOO / "heads" / parsed.entry.name
    rates = read_notes(folder)["rates"]
    if stored(model) is None:
        cost_curve(model)
    chances = []
    for path in likeliest(rates, 64):
        chance = 1.0
        for depth, rank in enumerate(path):
            chance *= rates[depth][rank]
        chances.append(chance)
    return spec.replace(COST, f"nodes={max(1, pays(sorted(chances, reverse=True), costs(model, 64)))}")


def greedy(ledger: Ledger, each: int, most: int, end: float) -> bool:
    model = lithe.load(MODEL)
    return _run("greedy", model, chosen(model, each, most), ledger, most, end)


def sampled(ledger: Ledger, each: int, most: int, end: float) -> bool:
    model = lithe.load(MODEL)
    return _run("sampled", model, chosen(model, each, most), ledger, most, end, temperature=1.0)


def editing(ledger: Ledger, each: int, most: int, end: float) -> bool:
    """tiny with the shipped adapter merged: a model that corrects its prompt."""
    model = lithe.load(MODEL)
    lithe.attach(model, EDITOR)
    Rack.of(model).merge(EDITOR.name)
    model.source = f"{MODEL} + {EDITOR.name}"
    return _run("editing", model, read_kinds(WORK / "editing.jsonl")[: 3 * each], ledger, 2 * most, end)


def chosen(model, each: int, most: int) -> list[tuple[str, str]]:
    """Of each task the first prompts on which plain decoding does not loop, and fewer on which it does."""
    kept, known = WORK / f"loops-{most}.json", {}
    if kept.is_file():
        known = json.loads(kept.read_text())
    made, wanted = plan(model), {True: round(LOOPING * each), False: each - round(LOOPING * each)}
    found: dict[str, dict[bool, list]] = {}
    for prompt, kind in read_kinds(WORK / "tasks.jsonl"):
        have = found.setdefault(kind, {True: [], False: []})
        if all(len(have[loops]) >= wanted[loops] for loops in have):
            continue
        name = digest(prompt)
        if name not in known:
            known[name] = stats.loops(measure(made, [request(model, prompt, max_tokens=most)]).tokens[0])
            kept.write_text(json.dumps(known))
        if len(have[known[name]]) < wanted[known[name]]:
            have[known[name]].append((prompt, kind))
    return [one for have in found.values() for loops in have for one in have[loops]]


def _run(part: str, model, asked: list[tuple[str, str]], ledger: Ledger, most: int, end: float, **settings) -> bool:
    """All groups of a part that the ledger lacks; whether that was all."""
    specs = [spec for text in methods(part) if (spec := settled(model, text)) is not None]
    texts, kinds = [prompt for prompt, _ in asked], [kind for _, kind in asked]
    print(f"{part}: {len(asked)} prompts, {len(specs)} methods", flush=True)
    there = {(r.method, r.code_hash) for r in ledger.read()
             if (r.settings.get("part"), r.settings.get("max_tokens"), r.prompts_hash) == (part, most, digest(texts))}
    left = [spec for spec in dict.fromkeys(specs) if (made := plan(model, draft=spec))
            and (made.name, code_hash(made.draft, *made.parts, *_warps(settings))) not in there]
    for at in range(0, len(left), GROUP):
        if time.monotonic() > end:
            return False
        with progress(part) as tell:
            rows = bench(model, left[at : at + GROUP], texts, kinds=kinds, max_tokens=most, part=part, ledger=ledger,
                         progress=tell, **settings)
        for row in rows:
            if row.error:
                print(f"{part}: {row.method} failed: {row.error}")
    return True


def _warps(settings: dict) -> tuple:
    return Law.of(**settings).warps


PARTS = {"greedy": greedy, "sampled": sampled, "editing": editing}

if __name__ == "__main__":
    sys.exit(main())
