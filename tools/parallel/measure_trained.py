"""Parts of measure.py that train models: dParallel and DSCD for a short time and for long, and CJ-GRPO."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lithe.bench.parallel._suite import best
from lithe.bench.parallel._tasks import CHOSEN, RANDOM

if TYPE_CHECKING:
    from measure import Desk

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
CERTAIN = ("0.02", "0.05", "0.08", "0.1", "0.15", "0.2", "0.45")  # entropies for what was trained for long
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
    able, name = desk.able(), lambda label: label.replace(",", "").replace(" ", "-")
    cad, own = [f"cad:early=0,floor={floor}" for floor in FLOORS], [f"low_entropy:most={most}" for most in CERTAIN]
    for label, (spec, before, steps, count, examples, data) in LONGER.items():
        asked = {"--steps": steps, "--rows": count, "--examples": examples, "--warmup": 100, "--data": f"tasks:{data}"}
        start = desk.fitted("", name(before)) if before else ""
        folder = desk.fitted(spec, name(label), model=start, **{key: str(value) for key, value in asked.items()})
        methods = ["", best(), "steady:tokens=8", *(cad if spec.startswith("dscd") else own)]
        desk.run(able, methods, model=folder, label=f"{desk.name} + {label}", part="trained")


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
                folder = desk.fitted(spec, f"reward-{trace}-{seed}{length.replace(', ', '-').replace(' ', '-')}", seed,
                                     **{"--data": f"tasks:{task}", "--steps": steps})
                label = f"{desk.name} + cj_grpo:trace={trace}{length}, seed {seed}"
                desk.run([task], [ascending], 200, model=folder, label=label, part="rewards")


PARTS = {"trained": trained_models, "longer": longer, "rewards": rewards}
