"""Neighbouring blocks are fitted together: steps, input ranges and which way weights round, told by thin matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.card import Card, knob
from lithe.compress.allocation import Plan
from lithe.compress.calibrate import Calibration, Source, batch_in
from lithe.compress.change import Change
from lithe.compress.groups import Group
from lithe.compress.rounds import Rounding
from lithe.compress.smooth import smooth
from lithe.compress.step import Target
from lithe.compress.surgery import copied
from lithe.errors import UsageError
from lithe.model.decoder import NONE, Decoder
from lithe.model.site import Site

CARD = Card(paper="CBQ: Cross-Block Quantization for Large Language Models", row=46, needs=("inputs",),
            promises=("meets_budget", "level_zero_is_identity", "masked_equals_cut"))
QUICK = {"epochs": 1, "thin": 2}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    window: int = knob(2, "blocks that are fitted together, the first of which is then settled", low=1)
    thin: int = knob(5, "rank of the matrices that say which way weights round; 0: a value for each, as AdaRound", low=0)
    epochs: int = knob(3, "over the calibration text, for each window", low=0)
    rounding_rate: float = knob(1e-3, "learning rate of the rounding matrices", low=0)
    step_rate: float = knob(1e-4, "of weight steps and input ranges, as shares of them", low=0)
    weigh: float = knob(0.01, "of the wish for offsets of 0 or 1, in the second half", low=0)
    input_bits: int = knob(0, "round inputs to so many bits of a fitted range; 0 leaves them to the kernels", low=0, high=16)
    outliers: bool = knob(True, "clip outlying weights and scale down outlying channels beforehand")
    spread: float = knob(1.0, "lambda: how much outliers must resemble each other", low=0)


class Method:
    """Ding et al. 2023. A window of blocks is run on what the rounded blocks before give and on what the plain ones do; both
    are to give what the plain blocks give on plain inputs, by square and by KL of their softmax (homologous reconstruction).

    The blocks of a window after the first begin anew in the next window. Our reading: offsets start where weights are.
    """

    units = ("bits",)

    def __init__(self, knobs: Knobs):
        self.knobs = knobs

    def smooth(self, model: Decoder, calibration: Calibration | None, levels: Plan, target: Target) -> None:
        def find(weights, inputs, even) -> Tensor:
            most_K = even(inputs.most_K)
            limit = threshold(most_K, self.knobs.spread)
            return (most_K / limit).clamp(min=1).sqrt()

        if self.knobs.outliers:
            smooth(model, calibration, levels, find)

    def block(self, groups: list[Group], levels: Plan, source: Source) -> dict[str, Change]:
        asked = {group.sites[0]: int(level) for group in groups if (level := levels[group.name]) is not None}
        if not asked:
            return {group.name: Change() for group in groups}
        if source.calibration is None:
            raise UsageError("fitting blocks needs a calibration text: give --calibration FILE")
        last = min(source.layer + self.knobs.window, len(source.model.layers))
        window = range(source.layer, last)
        work = copied(source.model).eval()
        for weight in work.parameters():
            weight.requires_grad_(False)
        put = self.rounded(work, asked, window, source)
        if self.knobs.epochs:
            self.fit(work, put, window, source)
        return {group.name: put[group.sites[0]].change(group.sites[0]) if group.sites[0] in asked else Change()
                for group in groups}

    def rounded(self, work: Decoder, asked: dict[str, int], window: range, source: Source) -> dict[str, Rounding]:
        """Roundings in place of the sites asked for, and of those of these names in the other blocks of the window."""
        put, dice = {}, torch.Generator().manual_seed(source.seed + source.layer)
        for layer in window:
            for site, bits in asked.items():
                _, _, inner = site.split(".", 2)
                module: Any = work.get_submodule(name := f"layers.{layer}.{inner}")
                weight_NK = module.weight.detach()
                if self.knobs.outliers:
                    limit = threshold(weight_NK.abs().flatten(), self.knobs.spread)
                    weight_NK = weight_NK.clamp(-limit, limit)
                x_MK = source.rows(site, 512) if layer == source.layer and self.knobs.input_bits else None
                put[name] = Rounding(weight_NK, module.bias, bits, source.target.group, self.knobs.thin, self.knobs.input_bits,
                                     x_MK, dice)
                Site(name, work).swap(put[name])
        return put

    @torch.enable_grad()
    def fit(self, work: Decoder, put: dict[str, Rounding], window: range, source: Source) -> None:
        assert source.calibration is not None
        run = lambda model, x_BTC: model(embeds=x_BTC, layers=window, logits=NONE).hidden
        with torch.no_grad():
            plain = [batch_in(source.dense, batch, window[0]) for batch in source.calibration.batches]
            wanted = [run(source.dense, x_BTC) for x_BTC in plain]
        streams, steps = source.stream(), self.knobs.epochs * len(plain)
        knobs, parts = self.knobs, list(put.values())
        optimizer = torch.optim.Adam([
            {"params": [weight for part in parts for weight in part.offsets], "lr": knobs.rounding_rate},
            {"params": [weight for part in parts for weight in part.steps], "lr": knobs.step_rate}])
        for step in range(steps):
            i, done = step % len(plain), step / steps
            optimizer.zero_grad()
            lost = distance(run(work, streams[i]), wanted[i]) + distance(run(work, plain[i]), wanted[i])
            if done >= 0.5:  # first towards the outputs, then towards whole offsets
                power = 20 + (2 - 20) * (done - 0.5) * 2
                lost = lost + knobs.weigh * torch.stack([part.undecided(power) for part in parts]).mean()
            lost.backward()
            optimizer.step()


def distance(found_BTC: Tensor, wanted_BTC: Tensor) -> Tensor:
    """Squared error, as a share of the mean square, and KL of the softmax over channels."""
    square = (found_BTC - wanted_BTC).square().mean() / wanted_BTC.square().mean()
    found, wanted = (x.flatten(0, 1).log_softmax(-1) for x in (found_BTC, wanted_BTC))
    return square + F.kl_div(found, wanted, log_target=True, reduction="batchmean")


def threshold(size_P: Tensor, spread: float) -> Tensor:
    """Above it are outliers: of the sizes beyond Q3 + 1.5 IQR those behind the cut of largest squared gap less `spread` times
    the variance of what is above (CBQ's coarse and fine step). The largest size of all where there are none."""
    ordered_P = size_P.detach().double().sort().values
    low, high = (ordered_P[int(share * (len(ordered_P) - 1))] for share in (0.25, 0.75))
    start = int(torch.searchsorted(ordered_P, high + 1.5 * (high - low), right=True))
    outer_P = ordered_P[start:]
    if not len(outer_P) or not start:
        return ordered_P[-1].to(size_P)
    gap_P = (outer_P - ordered_P[start - 1 : -1]).square()
    count_P = torch.arange(len(outer_P), 0, -1, device=outer_P.device)
    mean_P, square_P = (x.flip(0).cumsum(0).flip(0) / count_P for x in (outer_P, outer_P.square()))
    cut = int((gap_P - spread * (square_P - mean_P.square())).argmax())
    return ordered_P[start - 1 + cut].to(size_P)
