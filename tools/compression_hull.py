"""Could zeros, low rank or missing halves help a plan of bits? A JSON line each of every budget's plans.

    python tools/compression_hull.py MODEL CALIBRATION HELD_OUT [--seed 0] [--tokens 512] [--options FILE]

Each option of each site is measured alone, as the integer program does (KL to the dense model, summed over sites). Of every
budget then: the best plan of bits, the best of all kinds, how low any mix could come by that sum (sites may be split between
options), and the best plans that must hold one site or half of another kind, all measured whole on held-out documents.
--options: where to write each option's bits and KL.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from lithe.bench.compress._score import Documents
from lithe.compress import calibrate
from lithe.compress.allocation import Problem
from lithe.compress.mixture import Mixture, parse
from lithe.compress.run import Stage
from lithe.compress.surgery import copied
from lithe.model.load import load

WAYS = ("gptq:bits=3,levels=2+3+4,group=128 | gptq:levels=2+3+4,group=32 | pv_tuning:levels=2 | sparsegpt:levels=0.5+0.8+0.9 | "
        "whitened_svd:levels=16+32+64 | magnitude_pruning:unit=half + integer_program")
BUDGETS = (2.5, 3.0, 3.5)
SAID = {"entry": "zeros", "rank": "low rank", "half": "halves gone", "bits": "bits"}


@dataclass
class Choices:
    """All options of all groups in one row. value: KL alone; cost: bytes; kind: "" for a site or half left as it is."""

    problem: Problem
    names: list[str]
    levels: list[Any]
    kind: list[str]
    value: NDArray[np.float64]
    cost: NDArray[np.float64]

    @property
    def ties(self) -> list[LinearConstraint]:
        """One option a group; a half goes with all of its sites."""
        groups = list(dict.fromkeys(self.names))
        one = np.array([[float(name == group) for name in self.names] for group in groups])
        at = {(name, level): i for i, (name, level) in enumerate(zip(self.names, self.levels, strict=True))}
        tied = np.zeros((sum(map(len, self.problem.bound.values())), len(self.names)))
        for row, (half, site) in zip(tied, ((h, s) for h, sites in self.problem.bound.items() for s in sites), strict=True):
            row[at[half, 0]], row[at[site, 0]] = 1, -1
        return [LinearConstraint(one, 1, 1), LinearConstraint(tied, 0, 0)]

    def best(self, budget: float, kinds: set[str], forced: str = "", split: bool = False) -> tuple[float, NDArray[np.float64]]:
        """The least sum within a budget by these kinds, at least one option of the forced kind among them, and what is taken of
        each option: whole ones, or shares where sites may be split."""
        allowed = np.array([float(kind in kinds or not kind or kind == forced) for kind in self.kind])
        held = np.array([float(kind == forced) for kind in self.kind])
        limits = [*self.ties, LinearConstraint(self.cost[None] / budget, -np.inf, 1 + 1e-9)]
        limits += [LinearConstraint(held[None], 1, np.inf)] if forced else []
        scale = float(self.value.max())
        found = milp(self.value / scale, integrality=np.full(len(held), 0.0 if split else 1.0), bounds=Bounds(0, allowed),
                     constraints=limits, options={"time_limit": 60, "mip_rel_gap": 0})
        if found.status != 0:
            raise SystemExit(f"the program was not solved: {found.message}")
        return float(self.value @ found.x), found.x

    def plan(self, taken: NDArray[np.float64]) -> dict[str, Any]:
        return {name: level for name, level, share in zip(self.names, self.levels, taken, strict=True) if share > 0.5}


def choices(stage: Stage, errors: Any) -> Choices:
    step, rows = stage.step, []
    assert isinstance(step, Mixture)
    halved = {site for sites in stage.problem.bound.values() for site in sites}
    for name, options in stage.options.items():
        for option, error in zip(options, errors[name], strict=True):
            kind = ""
            if isinstance(option.level, str):
                kind = SAID[step.groups_of[option.level.rpartition("=")[0]][name].unit]
            elif option.level == 0 and name not in halved:
                kind = SAID["half"]
            rows.append((name, option.level, kind, max(0.0, error), option.cost))
    names, levels, kinds, values, costs = zip(*rows, strict=True)
    return Choices(stage.problem, list(names), list(levels), list(kinds), np.array(values), np.array(costs))


def below(found: Choices) -> dict[str, dict[str, int]]:
    """Of each kind: options of fewer bits than the richest of bits (vertices of their site's lower hull among them)."""
    told = {kind: {"options": 0, "on_hull": 0} for kind in SAID.values() if kind != SAID["half"]}
    for site in dict.fromkeys(name for name, kind in zip(found.names, found.kind, strict=True) if kind == SAID["bits"]):
        own = [i for i, name in enumerate(found.names) if name == site and found.kind[i]]
        most = max(found.cost[i] for i in own if found.kind[i] == SAID["bits"])
        near = sorted((i for i in own if found.cost[i] <= most), key=lambda i: (found.cost[i], found.value[i]))
        for i in near:
            told[found.kind[i]]["options"] += 1
            told[found.kind[i]]["on_hull"] += _vertex(i, near, found)
    return told


def _vertex(i: int, others: list[int], found: Choices) -> bool:
    """Whether no mix of two others is as cheap and loses no more."""
    x, y = found.cost[i], found.value[i]
    rest = [(found.cost[j], found.value[j]) for j in others if j != i]
    if any(u <= x and v <= y for u, v in rest):
        return False
    return not any(v + (w - v) * (x - u) / (z - u) <= y for u, v in rest for z, w in rest if u < x < z)


def wanted(found: Choices, weights: int) -> list[dict[str, Any]]:
    """The plans of every budget, without what they lose whole."""
    every, bits, lines = set(SAID.values()), {SAID["bits"]}, []
    for width in BUDGETS:
        budget = width * weights / 8
        bound, _ = found.best(budget, every, split=True)
        for name, kinds, forced in (("bits", bits, ""), ("all kinds", every, ""),
                                    *((f"one of {kind}", every, kind) for kind in SAID.values() if kind not in bits)):
            total, taken = found.best(budget, kinds, forced)
            plan = found.plan(taken)
            used = {kind: int(sum(taken[i] > 0.5 for i, own in enumerate(found.kind) if own == kind)) for kind in SAID.values()}
            lines.append({"bits": width, "way": name, "sum": total, "bound": bound, "used": used, "plan": plan})
    return lines


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("model")
    read.add_argument("calibration", type=Path)
    read.add_argument("held_out", type=Path)
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--tokens", type=int, default=512, help="of the 2,048 to calibrate on, that options are measured on")
    read.add_argument("--options", type=Path)
    asked = read.parse_args()
    model = load(asked.model, dtype="float32", fast=False)
    text = calibrate.read(asked.calibration, model, length=256, tokens=2048, seed=asked.seed)
    stage = Stage(copied(model), parse(WAYS), text, asked.seed, lambda *_: None, None, 0, 2)
    found = choices(stage, stage.problem.errors(asked.tokens))
    if asked.options:
        bits = {group.name: 8 / group.weights for group in stage.groups if group.weights}
        rows = zip(found.names, found.levels, found.kind, found.cost, found.value, strict=True)
        asked.options.write_text("\n".join(json.dumps([name, level, kind, round(cost * bits.get(name, 0), 4), value])
                                           for name, level, kind, cost, value in rows) + "\n")
    documents, measured = Documents(model, asked.held_out, 200, 64), stage.problem.find_loss
    told = {"seed": asked.seed, "model": asked.model}
    print(json.dumps(told | {"way": "dense", "hull": below(found), **documents.score(model)}), flush=True)
    scores: dict[str, dict[str, Any]] = {}
    for line in wanted(found, sum(group.weights for group in stage.groups)):
        plan = line.pop("plan")
        if (key := json.dumps(plan)) not in scores:
            scores[key] = {"kl_text": measured(plan), **documents.score(measured.model)}
            scores[key].pop("tokens")  # the dense line's
        print(json.dumps(told | line | scores[key]), flush=True)


if __name__ == "__main__":
    main()
