"""Write docs/decoding.md and docs/decoding.svg from the ledger of tools/decoding/measure.py."""

from __future__ import annotations

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from measure import LEDGER, MODEL, ROOT

from lithe.bench.ledger import Ledger, Record

PAGE, PICTURE = ROOT / "docs" / "decoding.md", ROOT / "docs" / "decoding.svg"
HEADS = ("method", "speed, mean over tasks", "tokens per pass", "rows a pass", "drafting", "same output")
Part = dict[str, Record]  # method -> its newest record

INTRODUCTION = """# Decoding methods beside each other

Written by `make decoding` from `docs/ledger-decoding.jsonl`: every prompt is run by all methods before the next one is, so each
table is one comparison. {cpu}, {threads} threads, {precision}, `{model}`.

Tasks: Spec-Bench's six (chat, translation, summarization, question answering, maths, retrieval), GSM8K, HumanEval and stories,
{each} prompts each, {most} tokens. **Speed** is against our own plain decoding on the same kernels, over prompts on which
plain decoding does not loop (a looping text flatters every draft; {loops:.0%} of the greedy texts loop), every task weighing
the same, with a 95 % bootstrap interval. **Tokens per pass** is over the same prompts; **rows a pass** is what was verified at
once; **drafting** is the share of the time that drafting and learning take. A model of 11 million parameters passes in a few
milliseconds, so Python's and the draft's own time weigh far more here than on a large model: read both columns.

![speed by method](decoding.svg)
"""


def main() -> None:
    parts = {name: newest(name) for name in ("greedy", "sampled", "editing")}
    first = next(iter(parts["greedy"].values()))
    plain = first.measured
    text = [INTRODUCTION.format(
        cpu=first.machine["cpu"], threads=first.threads, precision=first.precision, model=MODEL, loops=plain["looping"],
        each=next(iter(plain["kinds"].values()))["prompts"], most=first.settings["max_tokens"])]
    text += ["## Greedy\n", table(parts["greedy"]), "## By task\n", TASKS, tasks(parts["greedy"])]
    if parts["sampled"]:
        text += ["## Temperature 1\n", count(parts["sampled"]) + SAMPLED, table(parts["sampled"])]
    if parts["editing"]:
        text += ["## Editing\n", count(parts["editing"]) + EDITING, table(parts["editing"])]
    PAGE.write_text("\n".join(text), encoding="utf-8")
    draw(parts["greedy"])


TASKS = "Speed over prompts that do not loop, tokens per pass in brackets; - where all texts of a task loop.\n"
SAMPLED = "Every lossless method samples from the model's own law, as the contract tests prove.\n"
EDITING = ("tiny with the adapter `tiny-editor` corrects seeded\nmistakes in sentences of public-domain books; the source, "
           "in the prompt, is what copying drafts live on.\n")


def count(part: Part) -> str:
    first = next(iter(part.values()))
    return f"{first.measured['of']} prompts, {first.settings['max_tokens']} tokens each. "


def newest(part: str) -> Part:
    found: Part = {}
    for record in Ledger(LEDGER).read() if LEDGER.is_file() else ():
        if record.settings.get("part") == part:
            if record.method == "plain":
                found = {}
            found[record.method] = record
    return found


def ranked(part: Part) -> list[dict]:
    return sorted((r.measured for r in part.values() if not r.measured["error"]), key=lambda m: -(m["mean"] or 0))


def table(part: Part) -> str:
    rows = [[f"`{m['method']}`" + ("" if m["lossless"] else " (changes the output)"), speed(m), passes(m),
             f"{m['nodes_per_pass']:.1f}", f"{m['draft_share']:.0%}", "" if m["same"] is None else f"{m['same']} of {m['of']}"]
            for m in ranked(part)]
    said = grid(HEADS, rows)
    if any(m["disturbed"] for m in ranked(part)):
        said += "\nSomething else ran on the machine meanwhile: believe counts, and times less.\n"
    failed = [f"`{r.method}`: {r.measured['error']}" for r in part.values() if r.measured["error"]]
    return said + "".join(f"\nNot measured: {each}\n" for each in failed)


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
