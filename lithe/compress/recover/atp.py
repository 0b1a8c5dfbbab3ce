"""Pruned while it is tuned: a small network decides which heads and channels stay, and low-rank parts learn to do without.

Axes: U units, N outputs, K inputs, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.card import Card, knob
from lithe.compress import solve, surgery
from lithe.compress.allocation import Option, Problem
from lithe.compress.calibrate import Calibration
from lithe.compress.change import Change
from lithe.compress.groups import Group, find
from lithe.compress.masking import best
from lithe.compress.recovery import attach, merge
from lithe.model.adapted import Below, Part
from lithe.model.decoder import Decoder
from lithe.train.batches import Batch
from lithe.train.loss import next_token

CARD = Card(paper="All-in-One Tuning and Structural Pruning for Domain-Specific LLMs", row=37, promises=("zero_at_start",),
            trains=True)
EMBED, HEADS, INNER, DEPTH = 64, 4, 256, 2  # of the network that decides
QUICK = {"steps": 6}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    ratio: float = knob(0.4, "share of the blocks' weights that goes", low=0, high=0.95)
    steps: int = knob(400, "of training on the calibration text: first two a batch, for parts and decisions in turn", low=0)
    rate: float = knob(1e-4, "peak learning rate", low=0)
    rank: int = knob(8, "of the low-rank parts", low=1)
    control: float = knob(0.4, "part of the steps while decisions still change", low=0, high=1)
    temperature: float = knob(0.4, "of the decisions", low=0.01)
    base: float = knob(3.0, "added to their logits, so that everything stays at first")
    budget: float = knob(5.0, "weight of the log ratio of what is left to what is to be left", low=0)
    lasso: float = knob(1.0, "weight of the lengths of what the parts give to units that go", low=0)
    last: float = knob(10.0, "times that weight in the last tenth", low=0)
    aware: bool = knob(True, "parts learn to do without what goes; without it they do not (the ablation)")


class Decisions(nn.Module):
    """Logits of all groups' units from fixed orthogonal embeddings of the layers, by two layers of attention."""

    first: Tensor

    def __init__(self, groups: list[Group], layers: int, seed: int, dtype: torch.dtype):
        super().__init__()
        self.groups = groups
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = nn.init.orthogonal_(torch.empty(layers, EMBED))
            block = nn.TransformerEncoderLayer(EMBED, HEADS, INNER, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(block, DEPTH, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(EMBED)
            self.heads = nn.ModuleList(nn.Linear(EMBED, group.units) for group in groups)
        self.register_buffer("first", first, persistent=False)
        self.to(dtype)

    def forward(self) -> dict[str, Tensor]:
        """Logits [U] by group."""
        state_LE = self.norm(self.encoder(self.first[None])[0])
        return {group.name: head(state_LE[group.layer]) for group, head in zip(self.groups, self.heads, strict=True)}


class Gated(Part):
    """y = mask * (W x) + B A x, or W (mask * x) + B A x: the low-rank branch is not masked."""

    kind = "gated"

    def __init__(self, a_RK: Tensor, b_NR: Tensor, *, reads: bool, scale: float):
        super().__init__()
        self.a, self.b = nn.Parameter(a_RK), nn.Parameter(b_NR)
        self.reads, self.scale = reads, scale
        self.mask: Tensor | None = None  # a value for each output, or for each input where it reads units
        self.held = False  # whether the branch is left as it is in this step

    def before(self, x: Tensor) -> Tensor:
        return x * self.mask if self.reads and self.mask is not None else x

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        y = y * self.mask if not self.reads and self.mask is not None else y
        a_RK, b_NR = (self.a.detach(), self.b.detach()) if self.held else (self.a, self.b)
        return y + self.scale * F.linear(F.linear(x, a_RK), b_NR)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight_NK + self.scale * (self.b @ self.a).to(weight_NK), bias_N

    @property
    def own(self) -> tuple[Tensor, int]:
        """The factor that units have lanes in, and which of its axes they are."""
        return (self.a, 1) if self.reads else (self.b, 0)


class Method:
    """Two updates a batch in turn: the parts, with a lasso on what goes, then the decisions (Lu et al. 2024, section 3)."""

    steps_each = 2

    def __init__(self, knobs: Knobs):
        self.knobs, self.steps, self.rate = knobs, knobs.steps, knobs.rate

    def begin(self, model: Decoder, dense: Decoder, calibration: Calibration, seed: int) -> list[nn.Parameter]:
        self.seed, self.final = seed, None  # type: int, dict[str, Tensor] | None
        self.groups = find(model, "width")
        self.decide = Decisions(self.groups, len(model.layers), seed, model.dtype)
        dice, rank, parts = torch.Generator().manual_seed(seed), self.knobs.rank, {}
        self.lanes: dict[str, Tensor] = {}  # of each site the unit of each of its lanes
        for group in self.groups:
            for site in group.sites:
                module: Any = model.get_submodule(site)
                a_RK = torch.randn(rank, module.in_features, generator=dice, dtype=model.dtype) / math.sqrt(module.in_features)
                parts[site] = Gated(a_RK, torch.zeros(module.out_features, rank, dtype=model.dtype), scale=2.0,
                                    reads=site.endswith(("o_proj", "down_proj")))
                wide = module.in_features if parts[site].reads else module.out_features
                self.lanes[site] = torch.arange(wide) // (wide // group.units)
        self.parts = parts
        weights = attach(model, parts)  # type: ignore[arg-type]
        model.add_module("decide", self.decide)
        return weights + list(self.decide.parameters())

    def masks(self, step: int | None) -> dict[str, Tensor]:
        """Zeros and ones by group [U], with noise at a step, whose gradient is that of the sigmoid."""
        found, dice = {}, torch.Generator().manual_seed(self.seed * 1_000_003 + (step or 0))
        for name, logit_U in self.decide().items():
            noise_U = torch.zeros_like(logit_U)
            if step is not None:
                drawn_U = torch.rand(logit_U.shape, generator=dice, dtype=logit_U.dtype).clamp(1e-7, 1 - 1e-7)
                noise_U = -drawn_U.log().neg().log()
            soft_U = torch.sigmoid((logit_U + noise_U + self.knobs.base) / self.knobs.temperature)
            found[name] = (soft_U > 0.5).to(soft_U) + soft_U - soft_U.detach()
        return found

    def put(self, masks: dict[str, Tensor] | None, held: bool) -> None:
        """What the sites are masked by in this pass."""
        for group in self.groups:
            for site in group.sites:
                self.parts[site].mask = None if masks is None else masks[group.name][self.lanes[site]]
                self.parts[site].held = held

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the parts in even steps and once decisions are final, of the decisions in the others."""
        step, text = int(batch["step"]), {name: batch[name] for name in ("ids_BT", "targets_BT")}
        frozen = step >= self.knobs.control * self.steps
        if frozen and self.final is None:
            self.final = self._final()
        if frozen or step % 2 == 0:
            masks = self.final if frozen else {name: mask.detach() for name, mask in self.masks(step).items()}
            assert masks is not None
            weight = self.knobs.lasso * (self.knobs.last if step >= 0.9 * self.steps else 1.0) if self.knobs.aware else 0.0
            if frozen:
                self._shrink(masks, weight)
            self.put(masks if frozen else None, held=False)
            total, tokens = next_token(model, text)
            return total + tokens * weight * self._lengths(masks), tokens
        masks = self.masks(step)
        self.put(masks, held=True)
        total, tokens = next_token(model, text)
        left = torch.stack([masks[group.name].sum() * group.each for group in self.groups]).sum()
        share = left / sum(group.weights for group in self.groups)
        return total + tokens * self.knobs.budget * (share.clamp(min=1e-6) / (1 - self.knobs.ratio)).log().abs(), tokens

    def _final(self) -> dict[str, Tensor]:
        """The decisions without noise, brought to exactly the size asked for: what has the least logit goes."""
        with torch.no_grad():
            logits = self.decide()
        each = lambda group: 1 if group.unit == "head" else 32 if group.units >= 512 else 8
        counts = {g.name: sorted({*range(0, g.units, each(g)), g.units}) for g in self.groups}
        options = {g.name: [Option(level=count, cost=g.each * count) for count in counts[g.name]] for g in self.groups}
        full = sum(group.weights for group in self.groups)
        plan = solve.ranked(Problem(groups=self.groups, options=options, budget=full * (1 - self.knobs.ratio)), logits)
        self.kept = {g.name: best(logits[g.name], int(plan[g.name] or 0)) for g in self.groups}
        return {g.name: torch.zeros_like(logits[g.name]).index_fill(0, self.kept[g.name], 1.0) for g in self.groups}

    def _lengths(self, masks: dict[str, Tensor]) -> Tensor:
        """The sum of lengths of the parts' lanes of units that go."""
        total = []
        for group in self.groups:
            for site in group.sites:
                factor, axis = self.parts[site].own
                off = 1 - masks[group.name][self.lanes[site]]
                total.append((factor.square().sum(1 - axis) + 1e-12).sqrt() @ off)
        return torch.stack(total).sum()

    @torch.no_grad()
    def _shrink(self, masks: dict[str, Tensor], weight: float) -> None:
        """The proximal step of the lasso: lanes of units that go get shorter by rate times weight."""
        for group in self.groups:
            for site in group.sites:
                factor, axis = self.parts[site].own
                size = factor.norm(dim=1 - axis, keepdim=True).clamp(min=1e-12)
                off = (1 - masks[group.name][self.lanes[site]]).unsqueeze(1 - axis)
                factor.mul_(1 - off * (self.rate * weight / size).clamp(max=1.0))

    def leftover(self) -> float:
        """The largest length of a part's lane of a unit that goes, as a share of the mean one of those that stay."""
        gone: list[Tensor] = []
        stay: list[Tensor] = []
        assert self.final is not None
        for group in self.groups:
            for site in group.sites:
                factor, axis = self.parts[site].own
                size, on = factor.detach().norm(dim=1 - axis), self.final[group.name][self.lanes[site]].bool()
                gone, stay = [*gone, size[~on]], [*stay, size[on]]
        return float(torch.cat(gone).max() / torch.cat(stay).mean().clamp(min=1e-12)) if len(torch.cat(gone)) else 0.0

    def finish(self, model: Decoder) -> Decoder:
        """Parts merged, units that go cut."""
        if self.final is None:
            self.final = self._final()
        self.put(None, held=False)
        del model.decide
        merge(model)
        return surgery.cut(model, [(group, Change(kept=self.kept[group.name])) for group in self.groups])
