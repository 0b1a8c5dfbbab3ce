"""Ways to spend a budget that several methods share. A plan is a level for each group; options come cheapest first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lithe.compress.allocation import Plan, Problem
from lithe.errors import LitheError, UnsupportedError

SLACK = 1e-9  # of a budget, for sums of floats


def at_shares(problem: Problem, shares: Mapping[str, float]) -> Plan:
    """The richest option of each group within its share of its full cost; what is then left goes, a step at a time, to the
    group furthest below its share."""
    problem = problem.standing() if problem.bound else problem
    problem.check()
    wanted = {name: shares[name] * options[-1].cost for name, options in problem.options.items()}
    at = {name: max([i for i, option in enumerate(options) if option.cost <= wanted[name] * (1 + SLACK)], default=0)
          for name, options in problem.options.items()}
    while spent(problem, at) > problem.budget * (1 + SLACK):  # cheapest options may cost more than their share
        name = max((n for n, i in at.items() if i), key=lambda n: problem.options[n][at[n]].cost - wanted[n])
        at[name] -= 1
    return plan(problem, fill(problem, at, wanted))


def fill(problem: Problem, at: dict[str, int], wanted: Mapping[str, float]) -> dict[str, int]:
    """Spend what is left, a step at a time, on the group furthest below what it wants."""
    at, left = dict(at), problem.budget * (1 + SLACK) - spent(problem, at)
    while True:
        steps = {name: problem.options[name][i + 1].cost - problem.options[name][i].cost for name, i in at.items()
                 if i + 1 < len(problem.options[name])}
        fits = [name for name, step in steps.items() if step <= left]
        if not fits:
            return at
        name = max(fits, key=lambda n: wanted[n] - problem.options[n][at[n]].cost)
        at[name], left = at[name] + 1, left - steps[name]


def uniform(problem: Problem) -> Plan:
    """The same share for all."""
    return at_shares(problem, dict.fromkeys(problem.options, problem.share))


def ranked(problem: Problem, scores: Mapping[str, Tensor] | None = None) -> Plan:
    """The units that score least go first, wherever they are, until the budget is met."""
    problem.check()
    scores = problem.unit_scores if scores is None else scores
    flat = torch.cat([scores[group.name].double().flatten() for group in problem.groups])
    owner = torch.repeat_interleave(torch.tensor([scores[group.name].numel() for group in problem.groups]))
    rich = [problem.options[group.name][-1].cost / scores[group.name].numel() for group in problem.groups]
    each = torch.tensor(rich, dtype=torch.float64)
    order = flat.argsort(stable=True)
    saved = each[owner[order]].cumsum(0)
    over = problem.full - problem.budget
    count = int((saved < over * (1 - SLACK)).sum()) + (over > 0)
    gone = torch.bincount(owner[order[:count]], minlength=len(problem.groups))
    return at_shares(problem, {group.name: 1 - float(gone[i]) / scores[group.name].numel()
                               for i, group in enumerate(problem.groups)})


def best_sum(problem: Problem, errors: Mapping[str, list[float]], seconds: float = 60.0) -> Plan:
    """The plan of least summed error within the budget, by an integer program (scipy's HiGHS), proven to be so."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError:
        raise UnsupportedError("an integer program needs scipy: pip install 'lithe[compress]'") from None
    problem.check()
    names = list(problem.options)
    value = np.concatenate([np.asarray(errors[name], float) for name in names])
    cost = np.concatenate([[option.cost for option in problem.options[name]] for name in names])
    owner = np.repeat(np.arange(len(names)), [len(problem.options[name]) for name in names])
    one = (owner[None] == np.arange(len(names))[:, None]).astype(float)
    scale = max(float(np.abs(value).max()), 1e-30)
    low = {name: int(np.argmax(owner == i)) for i, name in enumerate(names)}
    tied = np.zeros((sum(map(len, problem.bound.values())), len(value)))
    for row, (half, site) in zip(tied, ((h, s) for h, sites in problem.bound.items() for s in sites), strict=True):
        row[low[half]], row[low[site]] = 1, -1
    within = LinearConstraint(cost[None] / problem.budget, -np.inf, 1 + SLACK)
    bound = [LinearConstraint(tied, 0, 0)] if len(tied) else []
    found = milp(value / scale, integrality=np.ones(len(value)), bounds=Bounds(0, 1),
                 options={"time_limit": seconds, "mip_rel_gap": 0},
                 constraints=[*bound, LinearConstraint(one, 1, 1), within])
    if found.status != 0:
        raise LitheError(f"the integer program was not solved: {found.message}")
    problem.notes |= {"status": "optimal", "objective": float(value @ np.round(found.x))}
    picked = {name: int(np.flatnonzero(np.round(found.x[owner == i]))[0]) for i, name in enumerate(names)}
    return plan(problem, _enriched(problem, picked, errors))


def _enriched(problem: Problem, at: dict[str, int], errors: Mapping[str, list[float]]) -> dict[str, int]:
    """What the sum leaves of the budget, spent on richer options that lose no more: ties go to more bytes. Halves stay."""
    halved = {*problem.bound, *(site for sites in problem.bound.values() for site in sites)}
    left = problem.budget - spent(problem, at)
    for name in sorted(at.keys() - halved, key=lambda name: problem.options[name][at[name]].cost):
        options, now = problem.options[name], problem.options[name][at[name]].cost
        fits = [i for i in range(at[name] + 1, len(options))
                if options[i].cost - now <= left + SLACK * problem.budget and errors[name][i] <= errors[name][at[name]]]
        if fits:
            left -= options[fits[-1]].cost - now
            at = at | {name: fits[-1]}
    return at


def spent(problem: Problem, at: Mapping[str, int]) -> float:
    """Bytes of the options chosen by number."""
    return sum(problem.options[name][i].cost for name, i in at.items())


def plan(problem: Problem, at: Mapping[str, int]) -> Plan:
    """Levels of the options chosen by number."""
    return {name: problem.options[name][int(i)].level for name, i in at.items()}
