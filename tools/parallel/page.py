"""Write docs/parallel.md and docs/parallel.svg from the ledger of tools/parallel/measure.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq

import claims_trained
import matplotlib.pyplot as plt
from book import MODEL, ROOT, Book

from lithe.bench.ledger import Record
from lithe.bench.parallel._curves import SHARES, curves, family
from lithe.bench.parallel._rows import Row, good, rows
from lithe.bench.parallel._suite import PLAIN, best
from lithe.bench.parallel._tasks import RANDOM, one_shot

PAGE, PICTURE = ROOT / "docs" / "parallel.md", ROOT / "docs" / "parallel.svg"
POLICIES = ("policy", "right", "points lost", "fewer passes", "tokens a pass", "of the oracle's saving", "rows")
TRAINED = ("trained by", "policy", "right", "points lost", "fewer passes", "of the oracle's saving")
TASKS = ("task", "right", *(f"fastest at {share:.0%} of it" for share in SHARES), "area, sure first", "area, in random order")
CLOSED = ("task", "places a step", "closed form", "measured")
CLAIMS = ("row", "claim, as checked here", "measured", "holds")
INTRODUCTION = """# Filling several places at once

Written by `tools/parallel/page.py` from `docs/ledger-parallel.jsonl`, which `tools/parallel/measure.py` fills, going on
where it ends. `{model}` (0.15 M parameters, {precision}), greedy unless said, {count} problems of each task, of seeds that
no training drew from; a rule judges each answer. **Points lost** and **fewer passes** are against one token a step on
the same problems, over the tasks on which that is right for 80 % and more ({able}), with paired 95 % bootstrap
intervals. **Of the oracle's saving**: the oracle commits exactly what is already as one token a step will leave it,
{least:.2f} times fewer passes. **Rows** are places that ran, drafts included, a problem. Passes are counts and the same
on every machine; what is timed says so.

![accuracy against tokens a pass](parallel.svg)
"""


def main() -> None:
    book = Book()
    able = good(book.of(PLAIN))
    found = rows(book.all(), able, best())
    plain = book.of(PLAIN)[0]
    least = next(row.fewer for row in found if row.method == best())
    text = [INTRODUCTION.format(model=MODEL, precision=plain.precision, count=plain.settings["problems"], able=", ".join(able),
                                least=least)]
    text += ["## Policies\n", policies(found), chosen(book, found, able)]
    text += ["## By task\n", BY_TASK, by_task(book)]
    text += section("## Trained\n", LEARNED, trained(book, able))
    text += section("### How far a trained model could go\n", FAR, far(book, able))
    text += section("## Beside a model that reads from left to right\n", BESIDE, rivals(book, able))
    text += section("## ParallelBench's own rows\n", OWN, published(book))
    text += section("## Closed forms\n", FORMS, closed(book))
    said = [[str(c.row or "-"), c.claim, c.measured, c.holds] for c in claims_trained.all_of(book, able)]
    text += ["## What the papers claim\n", WANTED, grid(CLAIMS, said, "---")]
    PAGE.write_text("\n".join(text), encoding="utf-8")
    draw(found, trained_rows(book, able))


BY_TASK = """**Fastest at**: the most times fewer passes at which a family of policies keeps this share of one token a
step's score, and which. **Area**: accuracy, a mean over speeds from one token a pass to all at once (steady steps).
"""
LEARNED = """`lithe fit` on drawn problems of the same tasks; each under the policy that it is for, whose threshold
goes from cautious to bold. **Points lost** and **fewer passes** are against the untrained model at one token a step. Where no
steps are named, a few hundred; `tuned`: `dparallel:masked=0.9,rate=1e-3`, each round taught by the right answers of the one
before it (round 4 at 5e-4, round 5 at `masked=0.7` too). `of twelve choices`: of 12 answers of its own to a problem the right
one that the student is nearest to (2,500 steps); round 2: that model's answers, a masked share drawn row by row (2,500). `of
choices`: the same with `patience=2`; `of one choice`: only the answer of one token a step.
"""
FAR = """Passes a problem, share right in brackets. **Own oracle**: commits what is already as the trained model's own one token
a step will leave it. **All at once**: one pass decides the whole answer. The others: fewest passes at a point lost or less.
"""
BESIDE = """`zoo:tiny-ar`, as large and trained on the same tasks, by drafts that need no weights; its passes are rounds, the
prompt's own the first. The same problems, the tasks from above. A canvas holds 8 places whatever the answer takes.
"""
OWN = """Lists of 3 to 6 names and whole squares, **every name renamed** to a word that the model knows, one to one and
in order: a list operation asks the same under any names. Lists of 15, Sudoku and all tasks of sentences are left out. The
rows have no licence and are not kept. Squares were never learned; once symbols are renamed all of them ask the same.
"""
FORMS = """Sampled at temperature 1 in random order, 500 lists of 6: what ideal marginals come to, and what the model did.
"""
WANTED = """Each row's check as its specification states it, on this model: **no** is an honest contradiction or a miss.
Rows without a number are goals of ours, in seconds, measured alone on the machine with one thread.
"""


def section(head: str, words: str, table: str) -> list[str]:
    return [head, words, table] if table else []


def spread(pair: tuple[float, float] | None, form: str = ".1f") -> str:
    return "" if pair is None else f" ({pair[0]:{form}} to {pair[1]:{form}})"


def cells(row: Row) -> list[str]:
    return [f"{row.accuracy:.1%}", f"{row.lost:+.1f}{spread(row.lost_interval)}",
            f"{row.fewer:.2f}{spread(row.fewer_interval, '.2f')}"]


def headroom(row: Row) -> str:
    return "" if row.headroom is None else f"{row.headroom:.0%}"


def policies(found: Seq[Row]) -> str:
    return grid(POLICIES, [[f"`{row.method}`", *cells(row), f"{row.tokens_per_pass:.2f}", headroom(row), f"{row.rows:.0f}"]
                           for row in sorted(found, key=lambda row: row.passes) if not row.error])


def chosen(book: Book, found: Seq[Row], able: Seq[str]) -> str:
    """The best policy, chosen on one draw of problems and measured on another."""
    again = rows(book.all(seed=1), able, best())
    held = [row for row in found if row.lost <= 1 and row.method != best() and row.fewer > 1]
    first = min(held, key=lambda row: row.passes)
    lines = [f"`{row.method}`: {row.lost:+.1f} points{spread(row.lost_interval)}, {row.fewer:.2f} times fewer"
             f"{spread(row.fewer_interval, '.2f')}, {headroom(row)} of the oracle's saving"
             for row in again if row.method in (first.method, "confident", "freedave")]
    count = again[0].problems if again else 0
    return f"\nChosen there, and on another {count} problems: {'; '.join(lines)}.\n" if again else ""


def by_task(book: Book) -> str:
    made = []
    drawn = curves(r for r in book.all() if r.method != best())
    for task in dict.fromkeys(curve.task for curve in drawn):
        own = [curve for curve in drawn if curve.task == task]
        fastest = [max(own, key=lambda curve, i=i: curve.keeps[i]) for i in range(len(SHARES))]
        area = {curve.family: curve.area for curve in own}
        said = [f"{curve.keeps[i]:.2f} `{curve.family}`" if curve.keeps[i] > 1 else "1" for i, curve in enumerate(fastest)]
        made.append([task, f"{own[0].points[0][1]:.0%}", *said,
                     f"{area['steady']:.2f}", f"{area['steady:by=chance']:.2f}"])
    return grid(TASKS, made)


def trained_rows(book: Book, able: Seq[str]) -> list[tuple[str, Row]]:
    """Each trained model's policies against the untrained model at one token a step."""
    base = [*book.of(PLAIN), *book.of(best())]
    found: list[tuple[str, Row]] = []
    for label, records in book.trained():
        named = [dataclasses.replace(r, settings=r.settings | {"part": ""}, method=f"{label}: {r.method}") for r in records]
        found += [(label, dataclasses.replace(row, method=row.method.removeprefix(f"{label}: ")))
                  for row in rows([*base, *named], able, best()) if row.method.startswith(f"{label}: ")]
    return found


def trained(book: Book, able: Seq[str]) -> str:
    made = [[f"`{label}`", f"`{row.method.partition(',heads')[0].replace('plain', 'one a step')}`", *cells(row), headroom(row)]
            for label, row in trained_rows(book, able)]
    return grid(TRAINED, made) if made else ""


def far(book: Book, able: Seq[str]) -> str:
    """Task by task, what was trained for long: under its best policy, by its own oracle, all at once."""
    one = [task for task in able if task not in RANDOM]
    groups = [one, *([task] for task in able if task in RANDOM), list(able)]
    lines = [["untrained", how, *(told([r for r in records if r.settings["task"] in group]) for group in groups)]
             for how, records in (("`entropy_budget:budget=0.1`", book.of("entropy_budget:budget=0.1")),
                                  ("own oracle", book.of(best())), ("all at once", book.of("steady:tokens=8")))]
    for label, records in book.trained():
        if not any(r.method == best() for r in records):
            continue
        policy = "cad" if label.startswith("dscd") else "low_entropy"
        chosen = claims_trained.cheapest(book, able, policy, f"{MODEL} + {label}")
        asked = ([(f"`{chosen.method}`", chosen.method)] if chosen else []) + [
            ("own oracle", best()), ("one token a step", PLAIN), ("all at once", "steady:tokens=8")]
        for how, method in asked:
            own = [r for r in records if r.method == method]
            lines.append([f"`{label}`", how, *(told([r for r in own if r.settings["task"] in group]) for group in groups)])
    return grid(("model", "how", f"{len(one)} of one answer", *(group[0] for group in groups[1:-1]), "all"), lines)


def told(records: Seq[Record]) -> str:
    """Passes a problem and the share that is right."""
    right = [bit == "1" for r in records for bit in r.measured["right"]]
    return f"{sum(sum(r.measured['passes']) for r in records) / len(right):.2f} ({sum(right) / len(right):.1%})"


def rivals(book: Book, able: Seq[str]) -> str:
    """Passes a problem of both kinds of model."""
    lines = []
    few = (PLAIN, "confident", "entropy_budget:budget=0.1", best())
    for model, part, only in (("zoo:tiny-ar", "rival", None), (MODEL, "", few)):
        for method in dict.fromkeys(r.method for r in book.all(part=part, model=model)):
            own = [r for r in book.of(method, part=part, model=model, tasks=able) if "error" not in r.measured]
            if own and (only is None or method in only):
                right = [int(bit) for r in own for bit in r.measured["right"]]
                lines.append([f"`{model}`", f"`{method}`", f"{sum(right) / len(right):.1%}",
                              f"{sum(sum(r.measured['passes']) for r in own) / len(right):.2f}",
                              f"{sum(r.measured['rows'] for r in own) / len(right):.0f}"])
    return grid(("model", "method", "right", "passes", "rows"), lines) if len(lines) > 4 else ""


def published(book: Book) -> str:
    own = book.all(part="published")
    if not own:
        return ""
    table: dict[str, dict[str, Record]] = {}
    for r in own:
        table.setdefault(r.settings["task"], {})[r.method] = r
    methods = list(dict.fromkeys(r.method for r in own))
    mean = lambda values: sum(values) / len(values)
    rate = lambda r: f"{mean([int(bit) for bit in r.measured['right']]):.0%} ({mean(r.measured['passes']):.1f})"
    lines = [[f"{task} ({len(each[PLAIN].measured['right'])})", *(rate(each[m]) if m in each else "" for m in methods)]
             for task, each in table.items()]
    return "Right, and passes a problem in brackets.\n\n" + grid(("rows", *(f"`{m}`" for m in methods)), lines)


def closed(book: Book) -> str:
    made = []
    for r in book.all(part="closed"):
        task, k = r.settings["task"], int(r.method.partition("tokens=")[2].partition(",")[0])
        ideal = 1.0 if task == "copy" else one_shot(task, 6, [k] * (6 // k))
        made.append([task, str(k), f"{ideal:.1%}", f"{r.measured['right'].count('1') / len(r.measured['right']):.1%}"])
    return grid(CLOSED, made) if made else ""


def grid(heads: Seq[str], lines: Seq[Seq[str]], align: str = "--:") -> str:
    table = [heads, ["---"] + [align] * (len(heads) - 1), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table) + "\n"


def draw(found: Seq[Row], learned: Seq[tuple[str, Row]]) -> None:
    """A point a policy, its families joined; the oracle apart."""
    figure, side = plt.subplots(figsize=(8.5, 5))
    families: dict[str, list[Row]] = {}
    for row in found:
        if not row.error:
            families.setdefault(family(row.method), []).append(row)
    for row in learned:
        families.setdefault(f"after {row[0]}", []).append(row[1])
    for name, several in families.items():
        line = sorted((row.tokens_per_pass, 100 * row.accuracy) for row in several)
        after = name.startswith("after")
        style = dict(marker="s" if after else "o", markersize=4, linewidth=0.9, linestyle="--" if after else "-")
        if name == best():
            style = dict(color="black", marker="*", markersize=12)
        if len(line) > 1 or name == best():
            side.plot(*zip(*line, strict=True), label=name, **style)
        else:
            side.plot(*line[0], "o", markersize=4, color="#868e96")
            side.annotate(name, line[0], fontsize=6, color="#868e96", xytext=(3, 3), textcoords="offset points")
    side.set_xlabel("tokens a pass")
    side.set_ylabel("right, %")
    side.legend(fontsize=6, loc="lower left")
    side.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
