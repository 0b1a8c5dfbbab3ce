"""The checks of what is trained, cached and timed, as claims.py states those of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq

import claims
import numpy as np
from book import MODEL, Book
from claims import Claim, lost, total, verdict

from lithe.bench.ledger import Record
from lithe.bench.parallel._rows import Row, against
from lithe.bench.parallel._suite import PLAIN

ASCENDING = "eoser:low=0.01,ascending=true"


def all_of(book: Book, able: Seq[str]) -> list[Claim]:
    """The claims that the ledger can speak to, by row."""
    found = [claim for check in CHECKS for claim in check(book, able)]
    return sorted(found, key=lambda claim: claim.row)


def under(book: Book, able: Seq[str], policy: str, model: str = MODEL) -> dict[str, list[Record]]:
    """Records of a policy at all its thresholds, of the base or of a model that was trained from it."""
    found: dict[str, list[Record]] = {}
    for r in book.all(part="trained", model=model):
        if r.method.partition(":")[0] == policy and r.settings["task"] in able:
            found.setdefault(r.method, []).append(r)
    return found


def cheapest(book: Book, able: Seq[str], policy: str, model: str = MODEL) -> Row | None:
    """The threshold with fewest passes of those that lose a point at most against the untrained model at one token a step."""
    plain = book.of(PLAIN, tasks=able)
    held = [row for rs in under(book, able, policy, model).values() if (row := against(rs, plain)).lost <= 1]
    return min(held, key=lambda row: row.passes, default=None)


def told(row: Row | None) -> str:
    return "none loses so little" if row is None else f"{row.passes:.2f} passes (`{row.method}`, {lost(row)})"


def certain(book: Book, able: Seq[str]) -> list[Claim]:
    """40: certainty forced where the model is right."""
    after = {spec: f"{MODEL} + {spec}" for spec in ("dparallel", "dparallel:beta=0", "dparallel:correct=false")}
    if not all(under(book, able, "low_entropy", model) for model in after.values()):
        return []
    base = cheapest(book, able, "low_entropy")
    best = {spec: cheapest(book, able, "low_entropy", model) for spec, model in after.items()}
    doubt = [float(np.mean([r.measured["doubt"] for r in under(book, able, "low_entropy", model)["low_entropy:most=0.45"]]))
             for model in (MODEL, after["dparallel"])]
    own, plain = best["dparallel"], best["dparallel:beta=0"]
    made = [verdict(40, "entropy of a canvas in its first pass falls by 40 %", f"{doubt[0]:.3f} to {doubt[1]:.3f} nats",
                    doubt[1] <= 0.6 * doubt[0])]
    if base and own:
        made.append(verdict(40, "passes at one point lost or less fall by 30 % under the same policy",
                            f"base {told(base)}; trained {told(own)}", own.passes <= 0.7 * base.passes))
        made.append(verdict(40, "without the entropy term they fall less", told(plain),
                            plain is None or plain.passes > own.passes))
    only, everywhere = (under(book, able, "low_entropy", after[spec])["low_entropy:most=0.45"]
                        for spec in ("dparallel", "dparallel:correct=false"))
    row = against(everywhere, only)
    made.append(verdict(40, "entropy asked for everywhere, not only where right, costs accuracy (at 0.45 nats)", lost(row),
                        row.lost > 0))
    return made


def consistent(book: Book, able: Seq[str]) -> list[Claim]:
    """10: consistency distillation, nested masks or not."""
    nested, apart = (cheapest(book, able, "cad", f"{MODEL} + {spec}") for spec in ("dscd", "dscd:nested=false"))
    base = cheapest(book, able, "cad")
    if not under(book, able, "cad", f"{MODEL} + dscd") or base is None:
        return []
    return [verdict(10, "passes at one point lost or less fall by 20 % under the same policy", f"base {told(base)}; trained "
                    f"{told(nested)}", nested is not None and nested.passes <= 0.8 * base.passes),
            verdict(10, "masks drawn apart are no better", told(apart),
                    apart is None or (nested is not None and apart.passes >= nested.passes))]


def windows(book: Book, able: Seq[str]) -> list[Claim]:
    """28: windows on a canvas of 256 places."""
    of = lambda method: book.of(method, part="window")
    if not of("window_diffusion"):
        return []
    row, cut = against(of("window_diffusion"), of(PLAIN)), against(of("window_diffusion + end_of_text"), of(PLAIN))
    share = lambda method: total(of(method), "rows") / total(of(PLAIN), "rows")
    time = lambda method: total(of(method), "seconds") / total(of(PLAIN), "seconds")
    made = [verdict(28, f"`{m}`, 256 places: 15 % of the rows, 40 % of the time, 2 points lost or less",
                    f"{share(m):.0%} of the rows, {time(m):.0%} of the time, {lost(r)}",
                    share(m) <= 0.15 and time(m) <= 0.4 and r.lost <= 2)
            for m, r in (("window_diffusion", row), ("window_diffusion + end_of_text", cut))]
    stale = against(of("window_diffusion:every=64"), of("window_diffusion:every=16"))
    made.append(verdict(28, "all computed anew every 16 steps is no worse than every 64", f"64: {lost(stale)}",
                        stale.lost >= 0))
    for every in ("", "every=64,"):
        without = against(of(f"window_diffusion:{every}recent=false"), of(f"window_diffusion:{every}".rstrip(":,")))
        made.append(verdict(28, f"leaving out what was decided lately does not help ({every.rstrip(',') or 'every=32'})",
                            lost(without), without.lost >= 0))
    return made


def rewarded(book: Book, able: Seq[str]) -> list[Claim]:
    """133: credit in the canvases in which tokens were decided."""
    gains: dict[str, list[float]] = {"true": [], "false": []}
    task, before = "", 0.0
    for name in dict.fromkeys(name for name, part, *_ in book.held if part == "rewards" and name != MODEL):
        own = book.of(ASCENDING, part="rewards", model=name)[0]
        task = own.settings["task"]
        base = book.of(ASCENDING, part="rewards", tasks=[task])[0]
        before = base.measured["right"].count("1") / 2
        gains["true" if "trace=true" in name else "false"].append(own.measured["right"].count("1") / 2 - before)
    if not task:
        return []
    mean = {name: float(np.mean(each)) for name, each in gains.items()}
    each = {name: ", ".join(f"{gain:+.1f}" for gain in several) for name, several in gains.items()}
    return [verdict(133, f"100 steps of CJ-GRPO on {task} ({before:.1f} % at ascending steps before) gain 10 points",
                    f"{mean['true']:+.1f} ({each['true']})", mean["true"] >= 10),
            verdict(133, "and more than scores of one pass do", f"{mean['false']:+.1f} ({each['false']})",
                    mean["true"] > mean["false"])]


def speeds(book: Book, able: Seq[str]) -> list[Claim]:
    """The two figures in seconds."""
    made = []
    turns: dict[str, list[Record]] = {}
    for seed in (2, 3, 4):
        for r in book.all(part="speed", seed=seed):
            turns.setdefault(r.method, []).append(r)
    for method, own in turns.items():
        if method != PLAIN:
            ratio = total(turns[PLAIN], "seconds") / total(own, "seconds")
            right = [sum(r.measured["right"].count("1") for r in rs) / sum(len(r.measured["right"]) for r in rs)
                     for rs in (turns[PLAIN], own)]
            passes = total(turns[PLAIN], "passes") / total(own, "passes")
            made.append(verdict(7, f"`{method}`: 3 times fewer passes, 2.5 times the tokens a second, one point lost or less",
                                f"{passes:.2f} and {ratio:.2f} times, {100 * (right[0] - right[1]):+.1f} points",
                                passes >= 3 and ratio >= 2.5 and right[0] - right[1] <= 0.01))
    for method in dict.fromkeys(r.method for r in book.all(part="speed 512") if "cache" in r.method):
        without = " + ".join(part for part in method.split(" + ") if "cache" not in part)
        own, bare = (book.of(each, part="speed 512") for each in (method, without))
        row = against(own, bare)
        made.append(verdict(28, f"`{method}`, 512 places: twice the tokens a second of no cache, one point lost or less",
                            f"{total(bare, 'seconds') / total(own, 'seconds'):.2f} times, {lost(row)}",
                            total(bare, "seconds") >= 2 * total(own, "seconds") and row.lost <= 1))
    return made


CHECKS: list[Callable[[Book, Seq[str]], list[Claim]]] = [
    claims.filters, claims.ends, claims.leaps, claims.coherent, claims.explored, claims.drafts, claims.theory, certain,
    consistent, windows, rewarded, speeds]
