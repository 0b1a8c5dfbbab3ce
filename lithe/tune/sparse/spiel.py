"""Train a few entries of each weight, now and then dropping the least changed for those with the largest gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.model.parts import wide_dtype
from lithe.model.sparse import Sparse
from lithe.train.entries import EntryAdamW, EntrySM3, ready
from lithe.train.optim import Optimizer
from lithe.tune.entries import Moving, drawn, move, shapes, share
from lithe.tune.targets import LINEARS

CARD = Card(paper="Scaling Sparse Fine-Tuning to Large Language Models (Ansell et al. 2024)", row=32,
            promises=("zero_at_start", "merge_equals_wrap", "touches_only"), trains=True)
TRACES = ("indices", "sums", "squares")  # of candidates


@dataclass(frozen=True, kw_only=True)
class Knobs:
    density: float = knob(0.01, "share of a weight's entries that train", low=1e-6, high=0.5)
    rank: int = knob(0, "as many entries as a low-rank pair of this rank has; 0: as density says", low=0, high=4096)
    grow: str = knob("ag", "criterion of new entries: ag, gradients summed over some steps, or ma, SM3's estimate of momenta",
                     choices=("ag", "ma"))
    every: int = knob(20, "steps from one selection to the next", low=2, high=1_000_000)
    look: int = knob(5, "steps whose gradients decide", low=1, high=1_000_000)
    rate: float = knob(0.2, "share of entries that a selection replaces, at first", low=0, high=1)
    fade: str = knob("linear", "how that share falls to none at the end", choices=("linear", "cosine"))
    decay: float = knob(0.0, "weight decay of the changes", low=0, high=1e4)
    targets: tuple[str, ...] = knob(LINEARS, "linear layers by the end of their name or by a pattern of all of it, joined by +")


class Method(Moving):
    def __init__(self, knobs: Knobs, model: Any):
        if knobs.look >= knobs.every:
            raise UsageError(f"look={knobs.look} steps do not fit between selections every={knobs.every} steps")
        super().__init__(knobs, model)
        self.seen: dict[str, list[Tensor]] = {}  # candidates by site: places, sums, squares, and this step's gradient

    def build(self, model: Any, dice: torch.Generator) -> dict[str, Sparse]:
        """Places at random, changes of zero."""
        found, dtype = self._counts(model), wide_dtype(model)
        return {site: Sparse(drawn(count, shape, dice), torch.zeros(count, dtype=dtype), shape)
                for site, (shape, count) in found.items()}

    def size(self, model: Any) -> int:
        return sum(count for _, count in self._counts(model).values())

    def begin(self, parts: dict[str, Sparse], steps: int) -> None:
        super().begin(parts, steps)
        self._watch()

    def optimizers(self, parts: dict[str, Any], settings: Optimizer) -> list[torch.optim.Optimizer]:
        decay = self.knobs.decay
        if self.knobs.grow == "ma":
            return ready(EntrySM3(parts.values(), settings.lr, weight_decay=decay), settings)
        weights = [part.values for part in parts.values()]
        return ready(EntryAdamW(weights, settings.lr, settings.betas, weight_decay=decay), settings)

    def observe(self, parts: dict[str, Sparse], step: int) -> None:
        """Count this step's gradients of the candidates: a step is a sample."""
        for seen in self.seen.values():
            if len(seen) == 4:
                now = seen.pop() / self.by
                seen[1] += now
                seen[2].addcmul_(now, now)

    @torch.no_grad()
    def update(self, parts: dict[str, Sparse], step: int, optimizers: list[torch.optim.Optimizer]) -> None:
        self.step = step
        if step % self.knobs.every == self.knobs.look and step <= self.steps:
            turn = 1.0 if step == self.knobs.look else self.knobs.rate * self._left(step / self.steps)
            for site, part in parts.items():
                if self.knobs.grow == "ma":
                    self._by_covers(part, turn, optimizers)
                else:
                    self._by_gradients(part, turn, self.seen.pop(site), optimizers)
        self._watch()

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"{name}:{site}": tensor for site, seen in self.seen.items()
                                  for name, tensor in zip(TRACES, seen, strict=True)}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        held = [site for site in self.parts if f"{TRACES[0]}:{site}" in state]
        self.seen = {site: [state[f"{name}:{site}"].to(self.parts[site].values.device) for name in TRACES] for site in held}
        self._watch()

    def held(self) -> int:
        """Candidates, and the one gradient that is whole while a site's are read off."""
        if self.knobs.grow == "ma" or not self.parts:
            return 0
        size = next(iter(self.parts.values())).values.element_size()
        whole = max(part.shape[0] * part.shape[1] for part in self.parts.values())
        return sum(len(part.values) for part in self.parts.values()) * (8 + 3 * size) + whole * size

    def _counts(self, model: Any) -> dict[str, tuple[tuple[int, int], int]]:
        k = self.knobs
        found = {site: (shape, k.rank * sum(shape) if k.rank else share(shape, k.density))
                 for site, shape in shapes(model, k.targets).items()}
        if over := [site for site, ((n, m), count) in found.items() if 2 * count > n * m]:
            raise UsageError(f"rank={k.rank} asks for more than half the entries of {over[0]}: take a lower one")
        return found

    def _left(self, done: float) -> float:
        return 1 - done if self.knobs.fade == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def _watch(self) -> None:
        """Look at whole gradients in the steps that decide, and in no other."""
        looks = self.knobs.grow == "ag" and self.step % self.knobs.every < self.knobs.look and self.step < self.steps
        for site, part in self.parts.items():
            part.watch = partial(self._look, site) if looks else None

    def _look(self, site: str, gradient_NK: Tensor) -> None:
        """The first look at a site chooses as many candidates as it has entries; all looks sum their gradients."""
        flat, seen = gradient_NK.detach().flatten(), self.seen.get(site)
        if seen is None:
            chosen = flat.abs().topk(min(len(self.parts[site].values), len(flat))).indices.sort().values
            self.seen[site] = seen = [chosen, torch.zeros_like(flat[chosen]), torch.zeros_like(flat[chosen])]
        if len(seen) == 3:
            seen.append(torch.zeros_like(seen[1]))
        seen[3] += flat[seen[0]]

    def _by_gradients(self, part: Sparse, turn: float, seen: list[Tensor], optimizers: Any) -> None:
        """Drop the least changed; of candidates that do not stay anyway, take those with the largest sums.

        What would be dropped and taken at once stays as it is. New entries begin with the moments that were seen.
        """
        candidates, sums, squares = seen
        least = _least(part, turn)
        stays = torch.ones_like(part.values, dtype=torch.bool).index_fill(0, least, False)
        free = ~torch.isin(candidates, part.places[stays])
        candidates, sums, squares = candidates[free], sums[free], squares[free]
        best = sums.abs().topk(min(len(least), len(sums))).indices
        again = torch.isin(candidates[best], part.places[least])
        best, least = best[~again], least[~torch.isin(part.places[least], candidates[best])]
        best = best[candidates[best].argsort()]
        samples = float(self.knobs.look)
        beta1, beta2 = optimizers[0].param_groups[0].get("betas", (0.9, 0.95))
        seeds = {"exp_avg": sums[best] / samples * (1 - beta1**samples), "age": torch.full_like(sums[best], samples),
                 "exp_avg_sq": squares[best] / samples * (1 - beta2**samples)}
        _replace(part, least[: len(best)], candidates[best], optimizers, seeds)

    def _by_covers(self, part: Sparse, turn: float, optimizers: Any) -> None:
        """The same by SM3's covers: the product of a row's and a column's stands for the squared gradient where they meet."""
        state = optimizers[0].state.get(part.values, {})
        if "rows" not in state:
            return
        least = _least(part, turn)
        guess = (state["rows"] @ state["columns"]).flatten().index_fill_(0, part.places.long(), -1.0)
        best = guess.topk(min(len(least), len(guess) - len(part.values))).indices.sort().values
        _replace(part, least[: len(best)], best, optimizers, None)


def _least(part: Sparse, turn: float) -> Tensor:
    """That share of the entries, those that have changed least, the least first."""
    return part.values.abs().topk(int(turn * len(part.values)), largest=False, sorted=True).indices


def _replace(part: Sparse, gone: Tensor, new: Tensor, optimizers: Any, seeds: dict[str, Tensor] | None) -> None:
    """Put ascending new places where those that stand at `gone` were."""
    stays = torch.ones_like(part.values, dtype=torch.bool).index_fill(0, gone, False)
    move(part, torch.cat([part.places[stays].long(), new]).sort().values, optimizers, seeds)
