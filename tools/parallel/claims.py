"""Each row's check as its specification states it, from the ledger: what was measured, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from book import Book

from lithe.bench.ledger import Record
from lithe.bench.parallel._rows import Row, against, same_texts
from lithe.bench.parallel._suite import PLAIN, best
from lithe.bench.parallel._tasks import one_shot

FLOOR = "confident"  # the threshold of 0.9 that claims are stated against
RANDOM = ("shuffle", "replace_random", "insert_random", "remove_random")


@dataclass(frozen=True)
class Claim:
    row: int
    claim: str
    measured: str
    holds: str


def verdict(row: int, claim: str, measured: str, holds: bool) -> Claim:
    return Claim(row, claim, measured, "yes" if holds else "no")


def lost(row: Row) -> str:
    low, high = row.lost_interval or (row.lost, row.lost)
    return f"{row.lost:+.1f} points ({low:.1f} to {high:.1f})"


def fewer(row: Row) -> str:
    low, high = row.fewer_interval or (row.fewer, row.fewer)
    return f"{row.fewer:.2f} ({low:.2f} to {high:.2f}) times fewer passes"


def beside(book: Book, able: Seq[str], own: str, other: str, **where: str) -> Row:
    """A method beside another on the tasks that are learned."""
    return against(book.of(own, tasks=able, **where), book.of(other, tasks=able, **where))


def total(records: Seq[Record], name: str) -> float:
    return float(sum(np.sum(r.measured[name]) for r in records))


def alike(own: Seq[Record], other: Seq[Record]) -> tuple[int, int]:
    theirs = {r.settings["task"]: r for r in other}
    pairs = [same_texts(r, theirs[r.settings["task"]]) for r in own]
    return sum(a for a, _ in pairs), sum(b for _, b in pairs)


def filters(book: Book, able: Seq[str]) -> list[Claim]:
    """2: at one point lost or less, no more passes than the threshold and no fewer than the oracle; its control loses."""
    own = {r.method for r in book.all(part="learn2pd")}
    if not own:
        return []
    plain, threshold, oracle = (book.of(m, tasks=able) for m in (PLAIN, FLOOR, best()))
    real = {m: rs for m in own if len(rs := book.of(m, part="learn2pd", tasks=able)) == len(plain)}  # whole ones
    held = {m: against(rs, plain) for m, rs in real.items() if "shuffled" not in m}
    fits = {m: row for m, row in held.items() if row.lost <= 1}
    made = []
    if fits:
        m = min(fits, key=lambda m: fits[m].passes)
        to = against(real[m], threshold)
        made.append(verdict(2, "the filter takes no more passes than the threshold of 0.9, at one point lost or less",
                            f"`{_floor(m)}`: {to.passes:.2f} against {total(threshold, 'passes') / to.problems:.2f} passes, "
                            f"{lost(fits[m])}", to.fewer >= 1))
        made.append(verdict(2, "the oracle takes no more passes than the filter",
                            f"{total(oracle, 'passes') / to.problems:.2f} against {to.passes:.2f}",
                            total(oracle, "passes") <= to.passes * to.problems))
        control = {c: against(rs, plain) for c, rs in real.items() if "shuffled" in c}
        saving = [row for row in control.values() if row.fewer > 1.05]
        made.append(verdict(2, "labels of other steps: no floor that saves passes loses less than 5 points",
                            f"{len(control) - len(saving)} of {len(control)} save none, the others lose at least "
                            f"{min((row.lost for row in saving), default=0):.1f}", all(row.lost >= 5 for row in saving)))
    else:
        made.append(verdict(2, "the filter at one point lost or less", "no floor of those tried loses so little", False))
    return made


def _floor(method: str) -> str:
    return method.partition(",heads")[0] + " of " + method.rpartition("/filter-")[2]


def ends(book: Book, able: Seq[str]) -> list[Claim]:
    """2 and 133: a canvas four times too long."""
    of = lambda method: book.of(method, part="long")
    if not of("end_of_text"):
        return []
    made = []
    for cut, whole in (("end_of_text", PLAIN), ("equal_blocks:size=8 + end_of_text", "equal_blocks:size=8")):
        same, count = alike(of(cut), of(whole))
        share = 1 - total(of(cut), "rows") / total(of(whole), "rows")
        made.append(verdict(2, f"`{cut}` on a canvas 4 times too long: the texts of `{whole}`, rows cut by half",
                            f"{same} of {count} texts, rows cut by {share:.0%}", same == count and share >= 0.5))
    held = against(of("eoser"), of(PLAIN))
    made.append(verdict(133, "holding ends of text back gains 5 points on a canvas 4 times too long, all of it one block",
                        f"{-held.lost:+.1f} points", held.lost <= -5))
    steps = {n for r in of("eoser:low=0.01,ascending=true") for n in r.measured["passes"]}
    made.append(verdict(133, "ascending steps take log2 of the canvas in passes", f"32 places: at most {max(steps)}",
                        max(steps) == 5))
    ascending = against(of("eoser:low=0.01,ascending=true"), of("eoser:low=1,ascending=true"))
    made.append(verdict(133, "with ascending steps, holding ends back gains as well", f"{-ascending.lost:+.1f} points",
                        ascending.lost < 0))
    return made


def leaps(book: Book, able: Seq[str]) -> list[Claim]:
    """4: neighbours of what is sure pass a lower threshold."""
    index = [task for task in able if task not in RANDOM]
    made = []
    for tasks, which in ((index, "tasks of one answer"), (able, "all tasks")):
        row = beside(book, tasks, "localleap", FLOOR)
        made.append(verdict(4, f"fewer passes than the threshold of 0.9 at one point lost or less, {which}",
                            f"{fewer(row)}, {lost(row)}", row.fewer > 1 and row.lost <= 1))
    none, at = book.of("localleap:radius=0"), book.of(FLOOR)
    same, count = alike(none, at)
    made.append(verdict(4, "with radius 0 it is the threshold, text for text and pass for pass",
                        f"{same} of {count} texts", same == count and total(none, "passes") == total(at, "passes")))
    radii = [("localleap:radius=0", ""), ("localleap:radius=1", ""), ("localleap:radius=2", "radius"), ("localleap", ""),
             ("localleap:radius=8", "radius")]
    if all(book.of(m, part=part) for m, part in radii):
        count = sum(len(r.measured["passes"]) for r in at)
        each = [total(book.of(m, part=part), "passes") / count for m, part in radii]
        made.append(verdict(4, "passes do not grow with the radius (0, 1, 2, 4, 8)", ", ".join(f"{n:.2f}" for n in each),
                            all(a >= b for a, b in pairwise(each))))
    return made


def coherent(book: Book, able: Seq[str]) -> list[Claim]:
    """14: what was foretold alike before."""
    made = []
    for method in ("ccd", "ccd:warm=1", "ccd:form=average"):
        row = beside(book, able, method, PLAIN)
        made.append(verdict(14, f"`{method}`: 0.6 of the passes of one token a step at one point lost or less",
                            f"{1 / row.fewer:.2f} of them, {lost(row)}", row.fewer >= 1 / 0.6 and row.lost <= 1))
    for task in ("add", "addr"):
        dynamic = book.of("ccd:warm=1", tasks=[task])
        apart = lambda k, task=task, dynamic=dynamic: abs(
            total(book.of(f"steady:tokens={k}", tasks=[task]), "passes") - total(dynamic, "passes"))
        nearest = min((2, 4, 8), key=apart)
        row = against(dynamic, book.of(f"steady:tokens={nearest}", tasks=[task]))
        made.append(verdict(14, f"`ccd:warm=1` on {task}: 3 points more than as many passes of steady steps",
                            f"{-row.lost:+.1f} points than {nearest} a step, at {row.passes:.1f} passes", row.lost <= -3))
    return made


def explored(book: Book, able: Seq[str]) -> list[Claim]:
    """38: deciding the most uncertain place where confidence stalls."""
    made = []
    drawn = [task for task in RANDOM if task in able]
    for method in ("ete:ahead=0", "look_ahead"):
        row = beside(book, drawn, method, FLOOR)
        made.append(verdict(38, f"`{method}`, tasks of many answers: 0.85 of the threshold's passes, one point lost or less",
                            f"{1 / row.fewer:.2f} of them, {lost(row)}", row.fewer >= 1 / 0.85 and row.lost <= 1))
    each = [total(rs, "bits") / total(rs, "passes") for rs in (book.of("ete:ahead=0"), book.of(FLOOR))]
    made.append(verdict(38, "more bits a pass than the threshold", f"{each[0]:.2f} against {each[1]:.2f}", each[0] > each[1]))
    return made


def drafts(book: Book, able: Seq[str]) -> list[Claim]:
    """149: the texts of one token a step."""
    made = []
    for k in (2, 4, 8):
        own, plain = (book.of(m, part="float64") for m in (f"freedave:drafts={k}", PLAIN))
        if own:
            same, count = alike(own, plain)
            never = all(a <= b for r, p in zip(own, plain, strict=True)
                        for a, b in zip(r.measured["passes"], p.measured["passes"], strict=True))
            row = against(own, plain)
            times = total(own, "rows") / total(plain, "rows")
            made.append(verdict(149, f"{k} drafts: the texts of one token a step (float64), in fewer passes, never in more",
                                f"{same} of {count} texts, {fewer(row)}, {times:.2f} times the rows",
                                same == count and never and row.fewer > 1))
    return made


def theory(book: Book, able: Seq[str]) -> list[Claim]:
    """7: closed forms on a trained model."""
    found: dict[tuple[str, int], float] = {}
    for r in book.all(part="closed"):
        found[r.settings["task"], int(r.method.partition("tokens=")[2].partition(",")[0])] = \
            r.measured["right"].count("1") / len(r.measured["right"])
    if not found:
        return []
    made = []
    for task in ("shuffle", "replace_random"):
        off = {k: 100 * (found[task, k] - one_shot(task, 6, [k] * (6 // k))) for k in (1, 2, 3, 6)}
        made.append(verdict(7, f"{task} of 6 sampled in random order: within 5 points of the closed form at 1, 2, 3, 6 a step",
                            ", ".join(f"{each:+.1f}" for each in off.values()), all(abs(each) <= 5 for each in off.values())))
        share = {k: 100 * (found[task, k] / found[task, 1] - one_shot(task, 6, [k] * (6 // k))) for k in (2, 3, 6)}
        own = f"{100 * found[task, 1]:.0f} %"
        made.append(verdict(7, f"the same as a share of the model's own {own} at one a step (an afterthought)",
                            ", ".join(f"{each:+.1f}" for each in share.values()),
                            all(abs(each) <= 5 for each in share.values())))
    made.append(verdict(7, "copy stays at 97 % and more when all is sampled at once", f"{found['copy', 6]:.1%}",
                        found["copy", 6] >= 0.97))
    rival = {r.settings["task"]: r.measured["right"].count("1") / len(r.measured["right"])
             for r in book.of(PLAIN, part="rival", model="zoo:tiny-ar", tasks=able)}
    if rival:
        made.append(verdict(7, "a model that reads from left to right stays at 97 % and more on all of these tasks", "below: "
                            + ", ".join(f"{task} {share:.0%}" for task, share in rival.items() if share < 0.97),
                            min(rival.values()) >= 0.97))
    three = [found[task, 6] for task in ("copy", "replace_random", "shuffle")]
    made.append(verdict(7, "all at once: copy before replace_random before shuffle", ", ".join(f"{each:.1%}" for each in three),
                        three[0] > three[1] > three[2]))
    return made

