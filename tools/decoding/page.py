"""Write docs/decoding.md and docs/decoding.svg from the ledger of tools/decoding/measure.py."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from measure import HERE, LEDGER, MODEL, ROOT

from lithe import registry
from lithe.bench.ledger import Ledger, Record
from lithe.model.load import ZOO
from lithe.train.fitted import NOTES

IDENTITY = ROOT / "docs" / "ledger-identity.jsonl"
PAGE, PICTURE = ROOT / "docs" / "decoding.md", ROOT / "docs" / "decoding.svg"
HEADS = ("method", "lossless", "speed, mean over tasks", "tokens/s", "tokens per pass", "rows a pass", "drafting", "memory, MB",
         "learned from", "same output")
TREES = ("method", "paper's tree", "tokens per pass", "speed", "one that pays here", "tokens per pass", "tokens/s", "speed")
RIVALS = ("prompts", "precision", "lithe's best", "tokens/s", "llama.cpp plain", "its lookup", "its draft model",
          "ratio to its best")
Part = dict[str, Record]  # method -> its newest record

INTRODUCTION = """# Decoding methods beside each other

Written by `make decoding` from `docs/ledger-decoding.jsonl`: every prompt is run by all methods before the next one is, so each
table is one comparison. {machine}, {threads} threads, {precision}, `{model}`.

Tasks: Spec-Bench's six (chat, translation, summarization, question answering, maths, retrieval), GSM8K, HumanEval and
stories; of each the first prompts on which plain decoding does not loop, and some on which it does ({loops:.0%} of the {of}
here), {most} tokens. **Speed** is against our own plain decoding on the same kernels, over prompts on which plain decoding
does not loop (a looping text flatters every draft), every task weighing the same, with a 95 % bootstrap interval.
**Tokens/s** and **tokens per pass** are over the same prompts; **rows a pass** is what was verified at once; **drafting**
is the share of the time that drafting and learning take; **memory** is what the method holds beside the model: weights,
caches, tables (blank: not counted); **learned from** counts the tokens its weights were fitted on. A model of 11 million
parameters passes in a few milliseconds, so Python's and the draft's own time weigh far more here than on a large model: read
both columns. Methods run a few at a time, always beside plain decoding.

![speed by method](decoding.svg)
"""


def main() -> None:
    parts = {name: whole(name) for name in ("greedy", "sampled", "editing")}
    first = next(iter(parts["greedy"].values()))
    plain = first.measured
    text = [INTRODUCTION.format(machine=machine(first), threads=first.threads, precision=first.precision, model=MODEL,
                                loops=plain["looping"], of=plain["of"], most=first.settings["max_tokens"])]
    text += ["## Greedy\n", table(parts["greedy"])]
    if newer := since("greedy"):
        text += ["### Measured since, on prompts of their own choice\n", count(newer), table(newer)]
    if before := whole("greedy", here=False):
        text += ["### On another machine\n", f"{place(before)}, older versions. " + count(before), table(before)]
    text += ["## Two trees\n", BOTH, families(parts["greedy"]), "## By task\n", TASKS, tasks(parts["greedy"])]
    if parts["sampled"]:
        text += ["## Temperature 1\n", count(parts["sampled"]) + SAMPLED, table(parts["sampled"])]
        if again := since("sampled"):
            text += ["Measured since, on prompts of their own choice. " + count(again), table(again)]
    if parts["editing"]:
        text += ["## Editing\n", count(parts["editing"]) + EDITING, table(parts["editing"])]
    if said := rivals():
        text += ["## Beside llama.cpp\n", AGAINST, said]
    if said := identity():
        text += ["## Token for token\n", SAME, said]
    PAGE.write_text("\n".join(text), encoding="utf-8")
    draw(parts["greedy"])


TASKS = "Speed over prompts that do not loop, tokens per pass in brackets; - where all texts of a task loop.\n"
SAMPLED = "Every lossless method samples from the model's own law, as the contract tests prove.\n"
EDITING = ("tiny with the adapter `tiny-editor` corrects seeded\nmistakes in sentences of public-domain books; the source, "
           "in the prompt, is what copying drafts live on.\n")


BOTH = """Tokens per pass at the tree a paper takes, and speed at one that this machine can pay for: so many nodes as the heads'
measured rates and T(n) make worth their time.
"""
AGAINST = """The same weights and precision, greedy, turn by turn in one run, each engine in a process of its own; prompts that
do not loop, and editing. llama.cpp runs plain, with its bindings' prompt lookup and with `zoo:tiny-aligned` as its draft
model, several settings of each; lithe's `draft 5` is that model, in int8 for both, and `guess` the recipe that has copies
beside it; of each kind the fastest counts. Times leave the prompt's own pass out.
"""
SAME = """64 shipped prompts, or as many as a cell says, 128 tokens, greedy: texts that are plain decoding's to the last token,
in ragged batches of 4 and, after a slash, alone; - where it was not run. From `docs/ledger-identity.jsonl`; `make identity`
runs what is missing.
"""


def count(part: Part) -> str:
    first = next(iter(part.values()))
    return f"{first.measured['of']} prompts, {first.settings['max_tokens']} tokens each. "


def machine(record: Record) -> str:
    return f"{record.machine['cpu']} ({', '.join(record.machine['features'])})"


@cache
def sets(part: str) -> list[Part]:
    """The newest record of each method, by the machine and the prompts they ran on, oldest first."""
    found: dict[tuple[str, str], Part] = {}
    for r in Ledger(LEDGER).read() if LEDGER.is_file() else ():
        if r.settings.get("part") == part:
            run = machine(r), r.prompts_hash
            found[run] = found.pop(run, {}) | {own(r.method): r}
    return list(found.values())


def own(method: str) -> str:
    """Its name without weights that it finds by itself, since the zoo ships them."""
    name = method.partition(":")[0]
    return re.sub(rf"[,:]heads=\.lithe/heads/{name}$", "", method) if (ZOO / "heads" / name / NOTES).is_file() else method


def whole(part: str, *, here: bool = True) -> Part:
    """Of those on the newest machine, or on all others, the one with most methods, the newest of several."""
    every = sets(part)
    return max((one for one in reversed(every) if (place(one) == place(every[-1])) == here), key=len, default={})


def since(part: str) -> Part:
    """What ran on newer prompts since, if it is not all."""
    last = (sets(part) or [{}])[-1]
    return {} if len(last) == len(whole(part)) else last


def place(part: Part) -> str:
    return machine(next(iter(part.values())))


def ranked(part: Part) -> list[dict]:
    return sorted((r.measured for r in part.values() if not r.measured["error"]), key=lambda m: -(m["mean"] or 0))


def table(part: Part) -> str:
    rows = [[f"`{m['method']}`", "yes" if m["lossless"] else "no", speed(m), rate(m), passes(m), f"{m['nodes_per_pass']:.1f}",
             f"{m['draft_share']:.0%}", f"{m['held_mb']:.1f}" if m.get("held_mb", 0) > 0.001 else "",
             learned(part[own(m["method"])]), "" if m["same"] is None else f"{m['same']} of {m['of']}"] for m in ranked(part)]
    said = grid(HEADS, rows)
    if disturbed := [f"`{m['method']}`" for m in ranked(part) if m["disturbed"]]:
        said += f"\nSomething else ran on the machine beside {', '.join(disturbed)}: believe counts, and times less.\n"
    failed = [f"`{r.method}`: {r.measured['error']}" for r in part.values() if r.measured["error"]]
    return said + "".join(f"\nNot measured: {each}\n" for each in failed)


def rate(m: dict) -> str:
    return f"{m['tokens_per_s_nonlooping']:.0f}" if m.get("tokens_per_s_nonlooping") else ""


def learned(record: Record) -> str:
    """Tokens that a method's weights were fitted on, by the notes of their folder; "" for a record older than this column."""
    aligned = "tiny-aligned" in record.method  # as lithe/zoo/tiny-draft/README.md has it, and lithe/zoo/tiny-aligned/README.md
    small = f"{32.9 if aligned else 20.6} M (the small model)"
    entry = next((e for e in registry.entries("decode") if e.shelf in ("draft", "tree", "search")
                  and e.name == record.method.partition(":")[0]), None)
    if "held_mb" not in record.measured:
        return ""
    if entry is None or not entry.card.trains:
        return small if aligned or (entry and (entry.shelf == "tree" or "second_model" in entry.card.needs)) else "-"
    named = record.knobs.get("heads")
    notes = (ROOT / named if named else ZOO / "heads" / entry.name) / NOTES
    if not notes.is_file():
        return "?"
    tokens = json.loads(notes.read_text())["training"]["tokens"]
    return f"{tokens / 1e6:.2f} M" + (", and " + small if "second_model" in entry.card.needs else "")


def families(part: Part) -> str:
    """A row a method: at the paper's tree, and at the one that pays."""
    listed = tomllib.loads((HERE / "methods.toml").read_text(encoding="utf-8"))["method"]
    by: dict[str, dict[str, dict]] = {}
    for each in listed:
        if "family" in each:
            pattern = re.escape(each["spec"].split(" + ")[0]).replace("nodes=cost", r"nodes=\d+")
            hits = [r.measured for r in part.values() if re.fullmatch(pattern, r.method) and not r.measured["error"]]
            if hits:
                by.setdefault(each["family"], {})[each["tree"]] = hits[-1]
    rows = []
    for name, trees in by.items():
        paper, pays = trees.get("paper"), trees.get("cost")
        left = [f"`{paper['method']}`", passes(paper), speed(paper)] if paper else ["-"] * 3
        right = [f"`{pays['method']}`", passes(pays), rate(pays), speed(pays)] if pays else ["-"] * 4
        rows.append([f"`{name}`", *left, *right])
    return grid(TREES, rows)


def rivals() -> str:
    """lithe's best plan beside llama.cpp's best own way."""
    kept = [r for r in Ledger(LEDGER).read() if r.suite == "rivals"]
    found = {(r.settings["part"], r.settings["asked"], r.method): r.measured for r in kept}
    rows = []
    for (part, precision, engine), m in found.items():
        theirs = found.get((part, precision, "llama.cpp"))
        if engine == "lithe" and theirs:
            speeds = theirs["tokens_per_s"]
            fastest = lambda kind, speeds=speeds: max(speeds[name] for name in speeds if name.startswith(kind))
            kinds = [fastest(kind) for kind in ("plain", "lookup", "draft")]
            rows.append([f"{part.removeprefix('rivals-')} ({m['prompts']})", precision, f"`{m['best']}`",
                         f"{m['tokens_per_s'][m['best']]:.0f}", *(f"{each:.0f}" for each in kinds),
                         f"{m['ratio']:.2f} ({m['interval'][0]:.2f} to {m['interval'][1]:.2f})"])
    return grid(RIVALS, rows) if rows else ""


def identity() -> str:
    """A row a method, a column a precision."""
    found = {(r.method, r.settings.get("asked", "fp32"), r.settings["batch"]): r.measured for r in Ledger(IDENTITY).read()
             if r.method != "plain"}  # the first ones were runs of the bench, in fp32
    names, kinds = list(dict.fromkeys(name for name, _, _ in found)), ("fp32", "bf16", "int8", "int4")
    cell = lambda m: f"{m['same']} of {m['of']}" if m else "-"
    return grid(("method", *kinds), [[f"`{name}`", *(f"{cell(found.get((name, kind, 4)))} / {cell(found.get((name, kind, 1)))}"
                                                    for kind in kinds)] for name in names]) if found else ""


def speed(m: dict) -> str:
    if m["mean"] is None:
        return ""
    low, high = m["mean_interval"]
    return f"{m['mean']:.2f} ({low:.2f} to {high:.2f})"


def passes(m: dict) -> str:
    return f"{m['tokens_per_pass_nonlooping']:.2f}" if m["tokens_per_pass_nonlooping"] else ""


def tasks(part: Part) -> str:
    kinds = list(dict.fromkeys(kind for r in part.values() for kind in r.measured["kinds"] or ()))
    cell = lambda figures: (f"{figures['speedup_nonlooping']:.2f} ({figures['tokens_per_pass_nonlooping']:.2f})"
                            if figures.get("nonlooping") else "-")
    return grid(("method", *kinds), [[f"`{m['method']}`", *(cell(m["kinds"].get(kind, {})) for kind in kinds)]
                                     for m in ranked(part) if m["method"] != "plain"])


def grid(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(part: Part) -> None:
    """A bar a method: speed, with its interval; beside it tokens per pass."""
    found = [m for m in ranked(part) if m["mean"]][::-1]
    names, speeds = [m["method"] for m in found], [m["mean"] for m in found]
    around = [[m["mean"] - m["mean_interval"][0] for m in found], [m["mean_interval"][1] - m["mean"] for m in found]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.28 * len(found) + 1.2), sharey=True)
    colours = ["#868e96" if m["method"] == "plain" else "#d9480f" if m["lossless"] else "#1971c2" for m in found]
    left.barh(names, speeds, xerr=around, color=colours, error_kw={"elinewidth": 0.8, "ecolor": "#495057"})
    right.barh(names, [m["tokens_per_pass_nonlooping"] for m in found], color=colours)
    left.axvline(1, color="#495057", linewidth=0.8)
    left.set_xlabel("speed against plain decoding")
    right.set_xlabel("tokens per pass")
    left.tick_params(labelsize=7)
    for side in (left, right):
        side.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
