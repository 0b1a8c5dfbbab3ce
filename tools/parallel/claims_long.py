"""Checks on long canvases and answers of several lines (rows 28 and 45, the caches), as claims.py states those of policies."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import claims
from book import MODEL, Book
from claims import Claim, lost, total, verdict
from measure_long import ABLATED, BLOCKS, CACHES, LONG, POLICIES, SIZES, SLOW

from lithe.bench.ledger import Record
from lithe.bench.parallel._rows import against
from lithe.bench.parallel._suite import PLAIN
from lithe.bench.parallel._tasks import RANDOM

MANY = (*RANDOM, "shuffle_lines", "replace_lines")  # tasks with many right answers


def of(book: Book, method: str, part: str, tasks: object = None, seed: int = 0) -> list[Record]:
    return book.of(method, part=part, model=LONG, tasks=tasks, seed=seed)


def windows(book: Book, able: Seq[str]) -> list[Claim]:
    """28: windows on a canvas of 256 places, on tasks that are right without one."""
    tasks = [r.settings["task"] for r in of(book, "window_diffusion", "window 256")]
    if not tasks:
        return []
    at = lambda method: of(book, method, "window 256", tasks)
    plain = at(PLAIN)
    share = lambda method, what: total(at(method), what) / total(plain, what)
    base = against(plain, plain)
    made = []
    for method in ("window_diffusion", "window_diffusion:prompt=true", "window_diffusion + end_of_text"):
        if not at(method):
            continue
        row = against(at(method), plain)
        made.append(verdict(28, f"`{method}`, 256 places, {len(tasks)} tasks, {base.problems} problems of which "
                            f"{base.accuracy:.0%} are right without: 15 % of the rows, 40 % of the time, 2 points lost or less",
                            f"{share(method, 'rows'):.0%} of the rows, {share(method, 'seconds'):.0%} of the time, {lost(row)}",
                            share(method, "rows") <= 0.15 and share(method, "seconds") <= 0.4 and row.lost <= 2))
    stale = against(at("window_diffusion:every=64"), at("window_diffusion:every=16"))
    made.append(verdict(28, "all computed anew every 16 steps is no worse than every 64", f"64: {lost(stale)}",
                        stale.lost >= 0))
    without = against(at("window_diffusion:recent=false"), at("window_diffusion"))
    return [*made, verdict(28, "leaving out what was decided lately does not help", lost(without), without.lost >= 0)]


def adaptive(book: Book, able: Seq[str]) -> list[Claim]:
    """45: blocks that end with a line, beside equal ones."""
    made = []
    for policy in POLICIES:
        rows = {}
        for size in SIZES:
            own, other = (of(book, f"{policy} + {blocks}:size={size}", "lines") for blocks in ("adablock", "equal_blocks"))
            if not own or not other:
                return made
            rows[size] = against(own, other)
        said = "; ".join(f"{size}: {100 * row.accuracy:.1f} %, {lost(row)}, {1 / row.fewer:.2f} of the passes"
                         for size, row in rows.items())
        worst = min(rows.values(), key=lambda row: row.accuracy + row.lost / 100)
        made.append(verdict(45, f"`{policy}`: blocks that end with a line lose nothing against equal ones of "
                            f"{', '.join(map(str, SIZES))} places, and gain on the worst of them", said,
                            all(row.lost <= 0 for row in rows.values()) and worst.lost < 0))
        near = min(rows.values(), key=lambda row: abs(row.fewer - 1))
        made.append(verdict(45, f"`{policy}`: as many passes, to a tenth, at every size",
                            f"nearest {1 / near.fewer:.2f}, where {lost(near)}",
                            all(0.9 <= row.fewer <= 1.1 for row in rows.values())))
    own, equal = (of(book, f"{POLICIES[-1]} + {blocks}:size=8", "lines") for blocks in ("adablock", "equal_blocks"))
    for each in ABLATED:
        other = of(book, f"{POLICIES[-1]} + adablock:size=8,{each}", "lines")
        if other and each == "floor=2":
            same, count = claims.alike(other, equal)
            made.append(verdict(45, "a floor that no delimiter reaches gives equal blocks, text for text and pass for pass",
                                f"{same} of {count} texts", same == count and total(other, "passes") == total(equal, "passes")))
        elif other:
            row = against(other, own)
            made.append(verdict(45, f"`{POLICIES[-1]} + adablock:size=8,{each}` is no better than as it stands",
                                f"{lost(row)}, {1 / row.fewer:.2f} of the passes", row.lost >= 0))
    return made


def caches(book: Book, able: Seq[str]) -> list[Claim]:
    """What a cache saves and costs on canvases of 512 places, in seconds of a quiet machine."""
    made = []
    for base in (BLOCKS, SLOW):
        for cache in CACHES:
            own = of(book, f"{base} + {cache}", "cached 512")
            if not own:
                continue
            tasks = [r.settings["task"] for r in own]
            for kind, which in (("tasks of one answer", [t for t in tasks if t not in MANY]),
                                ("tasks of many answers", [t for t in tasks if t in MANY])):
                if which:
                    row = against(of(book, f"{base} + {cache}", "cached 512", which), of(book, base, "cached 512", which))
                    made.append(verdict(0, f"`{base} + {cache}`, 512 places, {row.problems} problems, {kind}: twice the tokens "
                                        "a second of no cache, one point lost or less", f"{row.faster:.2f} times, {lost(row)}",
                                        row.faster >= 2 and row.lost <= 1))
    return made


def steady(book: Book, able: Seq[str]) -> list[Claim]:
    """The same at one token a step, where each block takes 32 passes, on the model of short canvases and few texts."""
    made = []
    for cache in CACHES[:2]:
        own = book.of(f"{SLOW} + {cache}", part="speed 512")
        bare = book.of(SLOW, part="speed 512", tasks=[r.settings["task"] for r in own])
        if own:
            ratio, (same, count) = total(bare, "seconds") / total(own, "seconds"), claims.alike(own, bare)
            made.append(verdict(0, f"`{SLOW} + {cache}`, 512 places, `{MODEL}`: twice the tokens a second of no cache, "
                                "the same texts", f"{ratio:.2f} times, {same} of {count} texts", ratio >= 2 and same == count))
    return made


CHECKS = [windows, adaptive, caches, steady]
