"""The checks of what is trained, cached and timed, as claims.py states those of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq

import claims
import claims_long
import numpy as np
from book import MODEL, Book
from claims import Claim, fewer, lost, total, verdict

from lithe.bench.ledger import Record
from lithe.bench.parallel._rows import Row, against, good
from lithe.bench.parallel._suite import PLAIN, best

BLOCKS, MIXED = "zoo:tiny-block", "zoo:tiny-diffusion-moe"
HOW, ROUNDS = ("twelve choices", "choices", "one choice"), ("", ", round 2", ", round 3")
LONG = ("dparallel, 8000 steps", *(f"dparallel tuned, round {n}" for n in range(1, 8)),
        *(f"dparallel of {how}{more}" for how in HOW for more in ROUNDS))  # dParallel trained for long
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
        made += [verdict(40, f"the same after `{label}`", f"trained {told(long)}",
                         long is not None and long.passes <= 0.7 * base.passes)
                 for label, records in book.trained() if label in LONG
                 for long in [cheapest(book, able, "low_entropy", f"{MODEL} + {label}")]]
        made.append(verdict(40, "without the entropy term they fall less", told(plain),
                            plain is None or plain.passes > own.passes))
    only, everywhere = (under(book, able, "low_entropy", after[spec])["low_entropy:most=0.45"]
                        for spec in ("dparallel", "dparallel:correct=false"))
    row = against(everywhere, only)
    made.append(verdict(40, "entropy asked for everywhere, not only where right, costs accuracy (at 0.45 nats)", lost(row),
                        row.lost > 0))
    return made


def furthest(book: Book, able: Seq[str]) -> list[Claim]:
    """The goal of what is trained: the best of all policies of all trained models, and once more on other problems."""
    plain = book.of(PLAIN, tasks=able)
    held = [(against(rs, plain), label) for label, records in book.trained() for rs in by_method(records, able).values()]
    fit = [(row, label) for row, label in held if row.lost <= 1 and row.method != best() and row.tasks == len(able)]
    if not fit:
        return []
    row, label = max(fit, key=lambda pair: pair[0].fewer)
    made = [verdict(0, "the best trained model and policy at one point lost or less: 5 times fewer passes",
                    f"`{label}`, `{row.method}`: {fewer(row)}, {lost(row)}", row.fewer >= 5)]
    name, least = f"{MODEL} + {label}", book.of(PLAIN, seed=1, tasks=able)
    again = by_method([r for r in book.all(part="trained", seed=1, model=name) if r.method != PLAIN], able)
    for method, records in again.items():
        new = against(records, least)
        made.append(verdict(0, f"the same, `{method}`, chosen there, on another {new.problems} problems",
                            f"{fewer(new)}, {lost(new)}", new.fewer >= 5 and new.lost <= 1))
    return made


def by_method(records: Seq[Record], able: Seq[str]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for r in records:
        if r.settings["task"] in able:
            found.setdefault(r.method, []).append(r)
    return found


def consistent(book: Book, able: Seq[str]) -> list[Claim]:
    """10: consistency distillation, nested masks or not."""
    nested, base = (cheapest(book, able, "cad", model) for model in (f"{MODEL} + dscd", MODEL))
    own, apart = (under(book, able, "cad", f"{MODEL} + {spec}").get("cad:early=0,floor=0.9")
                  for spec in ("dscd", "dscd:nested=false"))
    if not own or not apart or base is None:
        return []
    row = against(apart, own)
    return [verdict(10, "passes at one point lost or less fall by 20 % under the same policy", f"base {told(base)}; trained "
                    f"{told(nested)}", nested is not None and nested.passes <= 0.8 * base.passes),
            verdict(10, "masks drawn apart are no better (at a floor of 0.9)", f"apart {lost(row)} against nested",
                    row.lost >= 0)]


def rewarded(book: Book, able: Seq[str]) -> list[Claim]:
    """133: credit in the canvases in which tokens were decided."""
    return [*_rewarded(book, "", 100), *_rewarded(book, ", 300 steps", 300)]


def _rewarded(book: Book, length: str, steps: int) -> list[Claim]:
    gains: dict[str, list[float]] = {"true": [], "false": []}
    task, before = "", 0.0
    for name in dict.fromkeys(name for name, part, *_ in book.held if part == "rewards" and name != MODEL):
        own = book.of(ASCENDING, part="rewards", model=name)[0]
        task = own.settings["task"]
        base = book.of(ASCENDING, part="rewards", tasks=[task])[0]
        before = base.measured["right"].count("1") / 2
        for trace, several in gains.items():
            if f"trace={trace}{length}, seed" in name:
                several.append(own.measured["right"].count("1") / 2 - before)
    if not all(gains.values()):
        return []
    mean = {name: float(np.mean(each)) for name, each in gains.items()}
    each = {name: ", ".join(f"{gain:+.1f}" for gain in several) for name, several in gains.items()}
    return [verdict(133, f"{steps} steps of CJ-GRPO on {task} ({before:.1f} % at ascending steps before) gain 10 points",
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
            made.append(verdict(0, f"`{method}`: 3 times fewer passes, 2.5 times the tokens a second, one point lost or less",
                                f"{passes:.2f} and {ratio:.2f} times, {100 * (right[0] - right[1]):+.1f} points",
                                passes >= 3 and ratio >= 2.5 and right[0] - right[1] <= 0.01))
    return made


def experts(book: Book, able: Seq[str]) -> list[Claim]:
    """34: places of a pass share experts."""
    of = lambda method: book.of(method, part="experts", model=MIXED)
    whole, half, free = (of(method) for method in ("confident + des:share=1.0", "confident + des:share=0.5", "confident"))
    if not half:
        return []
    same, count = claims.alike(whole, free)
    ran = lambda records: total(records, "experts") / total(records, "passes")
    row = against(half, free)
    kept = row.accuracy / (row.accuracy + row.lost / 100)
    made = [verdict(34, "all experts shared is no sharing", f"{same} of {count} texts", same == count),
            verdict(34, "half of the experts keep 97 % of the accuracy and run 30 % fewer a pass",
                    f"{kept:.1%} of it, {1 - ran(half) / ran(free):.0%} fewer run",
                    kept >= 0.97 and ran(half) <= 0.7 * ran(free))]
    shares = [m for m in dict.fromkeys(r.method for r in book.all(part="experts", model=MIXED)) if "share=" in m]
    for each in (1, 2):
        names = of(f"confident + des:by=seq,each={each}")
        near = min(shares, key=lambda m, names=names: abs(ran(of(m)) - ran(names)))
        row = against(of(near), names)
        made.append(verdict(34, f"votes are no worse than {each} named by each token, as many experts running",
                            f"`{near}`: {ran(of(near)):.1f} against {ran(names):.1f} a pass, {lost(row)}", row.lost <= 0))
    return made


def verified(book: Book, able: Seq[str]) -> list[Claim]:
    """49: a block model that verifies its own drafts, against thresholds alone."""
    of = lambda method: book.of(method, part="blocks model", model=BLOCKS)
    known = good(of(PLAIN), "blocks model")
    some = lambda method: [r for r in of(method) if r.settings["task"] in known]
    if not known or "error" in of("s2d2:route=static")[0].measured:
        return []
    made = []
    for floor in ("0.7", "0.85", "0.9"):
        alone = some("confident" if floor == "0.9" else f"confident:floor={floor}")
        for route in ("static", "dynamic"):
            row = against(some(f"s2d2:route={route} + confident:floor={floor}"), alone)
            made.append(verdict(49, f"`s2d2:route={route}` with `confident:floor={floor}`: no more passes than the threshold "
                                "alone and no less accuracy", f"{fewer(row)}, {lost(row)}", row.fewer >= 1 and row.lost <= 0))
    return made


CHECKS: list[Callable[[Book, Seq[str]], list[Claim]]] = [
    claims.filters, claims.ends, claims.leaps, claims.coherent, claims.explored, claims.drafts, claims.theory, furthest,
    certain, consistent, experts, verified, rewarded, speeds, *claims_long.CHECKS]
