"""Allocators: a level for every group, within the budget."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from lithe.compress.allocation import Option, Plan, Problem
from lithe.compress.groups import Group
from lithe.errors import UsageError
from lithe.registry import Entry


def check_verbs(entry: Entry) -> None:
    """A level for every group, of its options; the same when asked again; no draw from torch's own dice."""
    for _, problem in problems():
        dice = torch.get_rng_state()
        plans = [entry.module.Method(entry.knobs(**quick(entry))).solve(problem) for _ in range(2)]
        assert torch.equal(dice, torch.get_rng_state()), "it draws from torch's own generator"
        assert plans[0] == plans[1], "asked again, it solves otherwise"
        assert plans[0].keys() == problem.options.keys(), "not every group gets a level"
        problem.cost(plans[0])  # raises for a level that is no option


def check_meets_budget(entry: Entry) -> None:
    """At most the budget is spent; where nothing has to go nothing goes; what cannot be met is refused."""
    for number, problem in problems():
        plan = entry.module.Method(entry.knobs(**quick(entry))).solve(problem)
        assert problem.cost(plan) <= problem.budget * (1 + 1e-9), "it spends more than the budget"
        if number == 0:
            assert problem.cost(plan) == problem.full, "it takes something although all may stay"
    _, problem = next(problems())
    problem.budget = problem.least / 2
    try:
        entry.module.Method(entry.knobs(**quick(entry))).solve(problem)
    except UsageError as told:
        assert "cannot be met" in str(told), f"a budget that cannot be met is refused with another reason: {told}"
    else:
        raise AssertionError("a budget that cannot be met is not refused")


def quick(entry: Entry) -> dict:
    """Knobs that make a search short; a file may say them in QUICK."""
    return getattr(entry.module, "QUICK", {})


def problems() -> Iterator[tuple[int, Problem]]:
    """Channels of six blocks, two sizes of them, at several shares; options of one to eight eighths."""
    dice = torch.Generator().manual_seed(5)
    scores = [torch.rand(64, generator=dice, dtype=torch.float64) * (1 + i) for i in range(6)]
    for number, share in enumerate((1.0, 0.8, 0.6, 0.35)):
        groups = [Group(name=f"layers.{i}.mlp", unit="channel", layer=i, sites=(f"layers.{i}.mlp.down_proj",), units=64,
                        weights=64 * 30 * (1 + i % 2)) for i in range(6)]
        options = {g.name: [Option(level=k * 8, cost=g.weights * k / 4) for k in range(1, 9)] for g in groups}
        full = sum(found[-1].cost for found in options.values())
        named = {g.name: s for g, s in zip(groups, scores, strict=True)}

        def loss(plan: Plan, tokens: int = 0, named: dict = named) -> float:
            return sum(float(named[name].sort().values[: 64 - int(level or 0)].square().sum()) for name, level in plan.items())

        yield number, Problem(groups=groups, options=options, budget=share * full, find_scores=partial(dict, named),
                              find_blocks=lambda metric: [0.5, 0.2, 0.1, 0.1, 0.2, 0.6], find_loss=loss,
                              find_slope=lambda groups, step, samples: 1.0 + groups[0].layer)
