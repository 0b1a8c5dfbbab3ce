"""Parts of measure.py that train models: dParallel and DSCD for a short time and for long, and CJ-GRPO."""

from __future__ import annotations

import argparse
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from book import Book

from lithe.bench.ledger import Record
from lithe.bench.parallel._rows import against
from lithe.bench.parallel._suite import PLAIN, best
from lithe.bench.parallel._tasks import CHOSEN, RANDOM

if TYPE_CHECKING:
    from measure import Desk

Fits = dict[str, tuple[str, str, int, int, int, str]]
TRAINED = {"dparallel": "low_entropy", "dparallel:beta=0": "low_entropy", "dparallel:correct=false": "low_entropy",
           "dscd": "cad:early=0", "dscd:nested=false": "cad:early=0"}  # what is trained, and the policy it is trained for
FLOORS = ("0.3", "0.5", "0.7", "0.9", "0.95")
ENTROPIES = ("0.05", "0.1", "0.45", "0.7")
WEIGHED = ",".join([*CHOSEN, *RANDOM * 4])  # towards tasks with many right answers
EVENER, EVENEST = (",".join([*CHOSEN * n, *RANDOM * 4, "shuffle", "shuffle"]) for n in (2, 3))
TUNED, EMPTY = "dparallel:masked=0.9,rate=1e-3", "dparallel:masked=1,beta=0,rate=1e-3"
LONGER = {  # a label: what is fitted, to which one before it, steps, rows, examples, of what tasks
    "dparallel, 8000 steps": ("dparallel", "", 8000, 32, 16000, WEIGHED),
    "dparallel tuned, round 1": (TUNED, "", 8000, 16, 24000, WEIGHED),
    "dparallel tuned, round 2": (TUNED, "dparallel tuned, round 1", 3000, 16, 24000, WEIGHED),
    "dparallel tuned, round 3": (TUNED, "dparallel tuned, round 2", 4000, 16, 24000, EVENER),
    "dparallel tuned, round 4": (f"{TUNED[:-4]}5e-4", "dparallel tuned, round 3", 3500, 32, 24000, EVENEST),
    "dparallel tuned, round 5": ("dparallel:masked=0.7,rate=5e-4", "dparallel tuned, round 4", 2000, 32, 12000, EVENER),
    "dparallel tuned, round 6": ("dparallel:masked=0.7,rate=5e-4", "dparallel tuned, round 5", 4000, 32, 16000, EVENER),
    "dparallel tuned, round 7": ("dparallel:masked=0.7,rate=1e-4", "dparallel tuned, round 6", 3000, 32, 16000, EVENER),
    "cross-entropy alone, empty canvas": (EMPTY, "", 3000, 16, 24000, WEIGHED),
    "dscd, 3000 steps": ("dscd", "", 3000, 16, 24000, WEIGHED),
}
EVEN = ",".join([*CHOSEN * 2, "reverse", "sort", *RANDOM * 2, "shuffle"])
EVENLY = ",".join([*CHOSEN, "reverse", "sort", "insert_index", "copy", *RANDOM, "shuffle", "replace_random", "insert_random",
                   "shuffle", "sort", "reverse"])
REPLACED = ",".join([*CHOSEN, "reverse", *RANDOM, "remove_random", *["replace_random"] * 3])
AGAIN = "dparallel:masked=0.3,spread=true,rate=5e-4"
TWELVE, CHOICES, ONLY = "dparallel of twelve choices", "dparallel of choices", "dparallel of one choice"
CHOOSING = {  # the same; of several right answers of its own a model is taught the one it is nearest to, or the only one
    TWELVE: (f"{TUNED},choices=12", "", 2500, 24, 5000, WEIGHED),
    f"{TWELVE}, round 2": (AGAIN, TWELVE, 2500, 32, 14000, EVENLY),
    CHOICES: (f"{TUNED},choices=12,patience=2", "", 2500, 24, 5000, WEIGHED),
    f"{CHOICES}, round 2": (AGAIN, CHOICES, 2500, 32, 14000, EVEN),
    f"{CHOICES}, round 3": ("dparallel:masked=0.5,spread=true,rate=5e-4,choices=6,patience=2", f"{CHOICES}, round 2", 1500, 24,
                            5000, REPLACED),
    ONLY: (TUNED, "", 2500, 24, 5000, WEIGHED),
}
CERTAIN = ("0.02", "0.05", "0.08", "0.1", "0.15", "0.2", "0.45")  # entropies for what was trained for long
BOLDER = (*CERTAIN, "0.3")
REWARDED = {"rate=3e-4": ("", "100"), "rate=1e-3,prompts=8": (", 300 steps", "300")}  # knobs: a label, steps


def trained_models(desk: Desk, given: argparse.Namespace) -> None:
    """dParallel and DSCD with their ablations, each under the policy it is for, and the base under the same."""
    knobs = {"low_entropy": [f"low_entropy:most={most}" for most in ENTROPIES],
             "cad:early=0": [f"cad:early=0,floor={floor}" for floor in FLOORS]}
    able = desk.able()
    desk.run(able, [each for several in knobs.values() for each in several], part="trained")
    for spec, policy in TRAINED.items():
        folder = desk.fitted(spec, spec.replace(":", "-").replace("=", "-"))
        desk.run(able, knobs[policy], model=folder, label=f"{desk.name} + {spec}", part="trained")


def longer(desk: Desk, given: argparse.Namespace) -> None:
    """Trained for twenty times as long: what is then decided at once, one place a step, and what its own oracle needs."""
    for label in LONGER:
        _measured(desk, LONGER, label, CERTAIN)


def choosing(desk: Desk, given: argparse.Namespace) -> None:
    """The same where right answers are chosen from. On another draw once more: the fastest policy at a point lost or less, and
    of those with five times fewer passes the one that loses least."""
    able = desk.able()
    plain = desk.run(able, [""])
    for label in CHOOSING:
        found = _measured(desk, CHOOSING, label, BOLDER)
        methods = [method for method in dict.fromkeys(r.method for r in found) if method != best()]
        held = [against([r for r in found if r.method == method], plain) for method in methods]
        fast = sorted((row for row in held if row.lost <= 1), key=lambda row: row.passes)[:1]
        safe = sorted((row for row in held if row.fewer >= 5), key=lambda row: row.lost)[:1]
        name, methods = f"{desk.name} + {label}", list(dict.fromkeys(["", *(row.method for row in fast + safe)]))
        if not _known(desk, name, "trained", able, methods, 1):
            desk.run(able, methods, seed=1, model=_folder(desk, CHOOSING, label), label=name, part="trained")


def _folder(desk: Desk, which: Fits, label: str) -> str:
    """Where a fit lies, made where it is not there yet, and those before it."""
    spec, before, steps, count, examples, data = which[label]
    asked = {"--steps": steps, "--rows": count, "--examples": examples, "--warmup": 100, "--data": f"tasks:{data}"}
    start = _folder(desk, which, before) if before else ""
    name = label.replace(",", "").replace(" ", "-")
    return desk.fitted(spec, name, model=start, **{key: str(value) for key, value in asked.items()})


def _measured(desk: Desk, which: Fits, label: str, entropies: Seq[str]) -> list[Record]:
    """A fit by one token a step, by its own oracle, all at once and by its policy at all thresholds."""
    cad, own = [f"cad:early=0,floor={floor}" for floor in FLOORS], [f"low_entropy:most={most}" for most in entropies]
    methods = ["", best(), "steady:tokens=8", *(cad if which[label][0].startswith("dscd") else own)]
    able, name = desk.able(), f"{desk.name} + {label}"
    return (_known(desk, name, "trained", able, methods)
            or desk.run(able, methods, model=_folder(desk, which, label), label=name, part="trained"))


def _known(desk: Desk, name: str, part: str, tasks: Seq[str], methods: Seq[str], seed: int = 0) -> list[Record]:
    """What the ledger holds of a trained model, if that is all: its fit, which may be gone, is not made again then."""
    held = Book(desk.ledger.path).all(part=part, seed=seed, model=name)
    wanted = {(task, method or PLAIN) for task in tasks for method in methods}
    return held if wanted <= {(r.settings["task"], r.method) for r in held} else []


def rewards(desk: Desk, given: argparse.Namespace) -> None:
    """CJ-GRPO against one-pass scores, on a task that ascending steps leave below 90 %: 100 steps, and for longer."""
    ascending = "eoser:low=0.01,ascending=true"
    first = desk.run([task for task in desk.able() if task in RANDOM], [ascending], 200, part="rewards")
    rate = {r.settings["task"]: r.measured["right"].count("1") / 200 for r in first}
    task = max((name for name in rate if rate[name] < 0.9), key=lambda name: rate[name])
    for knobs, (length, steps) in REWARDED.items():
        for seed in range(3):
            for trace in ("true", "false"):
                spec = f"cj_grpo:policy={ascending.replace(',', ';')},trace={trace},{knobs}"
                label = f"{desk.name} + cj_grpo:trace={trace}{length}, seed {seed}"
                if _known(desk, label, "rewards", [task], [ascending]):
                    continue
                folder = desk.fitted(spec, f"reward-{trace}-{seed}{length.replace(', ', '-').replace(' ', '-')}", seed,
                                     **{"--data": f"tasks:{task}", "--steps": steps})
                desk.run([task], [ascending], 200, model=folder, label=label, part="rewards")


PARTS = {"trained": trained_models, "longer": longer, "choosing": choosing, "rewards": rewards}
