"""What a difference is worth: a model that takes one after another, and knobs chosen by what comes out."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from lithe.errors import UsageError
from lithe.model import names
from lithe.model.decoder import ALL, Decoder
from lithe.model.load import load
from lithe.registry import Spec
from lithe.tune import difference
from lithe.tune.difference import Change
from lithe.tune.rack import Rack
from lithe.tune.source import ADAPTER

Judge = Callable[[Decoder], float]  # less is better


class Trial:
    """A model on which differences are tried. name: the folder that differences are of, or for an adapter its model."""

    def __init__(self, name: str | Path, *, offline: bool = False, threads: int | None = None):
        self.model = load(name, fast=False, offline=offline, threads=threads)
        self.shapes = {held: tuple(weight.shape) for held, weight in self.model.named_parameters()}

    def judge(self, change: Change | None, judge: Judge) -> float:
        """What the judge says of the base with this difference; without one, of the base."""
        if change is None:
            return judge(self.model)
        return self._adapter(change, judge) if change.before.what == ADAPTER else self._model(change, judge)

    @torch.no_grad()
    def _model(self, change: Change, judge: Judge) -> float:
        held = change.before
        table = names.layout(self.shapes, self.model.config.family, names.is_stacked(held.shapes))
        self._put(table, ((name, change.after(name)) for name in held.shapes))
        found = judge(self.model)
        self._put(table, ((name, held.read(name)) for name in held.shapes))
        return found

    def _put(self, table: dict[str, list[str]], made: Iterator[tuple[str, torch.Tensor]]) -> None:
        weights = dict(self.model.named_parameters())
        for name, tensor in made:
            whole = tensor.flatten(0, -2) if tensor.dim() > 2 else tensor
            members = [weights[member] for member in table.get(name, ())]  # none: a copy of a matrix that is tied
            for weight, piece in zip(members, whole.split([len(weight) for weight in members]) if members else (), strict=True):
                weight.copy_(piece)

    def _adapter(self, change: Change, judge: Judge) -> float:
        rack = Rack.of(self.model)
        with tempfile.TemporaryDirectory() as place:
            rack.load(difference.apply(change, Path(place) / "tried"), name="tried")
        try:
            return judge(self.model)
        finally:
            rack.remove("tried")


def choose(trial: Trial, make: Callable[[list[Spec]], Change], specs: Sequence[Spec],
           judge: Judge) -> tuple[list[Spec], list[tuple[str, float]]]:
    """For each method in turn, the best value of the knob in its GRID that its spec does not give; and all that was tried.

    make: the difference as methods leave it.
    """
    chosen, tried = list(specs), []
    for at, spec in enumerate(chosen):
        for knob, values in getattr(spec.entry.module, "GRID", {}).items():
            if knob in spec.values:
                continue
            found = []
            for value in values:
                one = dataclasses.replace(chosen[at], values={**chosen[at].values, knob: value})
                found.append((trial.judge(make([*chosen[:at], one, *chosen[at + 1 :]]), judge), one))
                tried.append((str(one), found[-1][0]))
            chosen[at] = min(found, key=lambda pair: pair[0])[1]
    return chosen, tried


def states(model: Decoder, texts: Sequence[str], tokens: int = 512) -> list[torch.Tensor]:
    """The last hidden states of a model that reads these texts, up to so many tokens of each."""
    if model.tokenizer is None:
        raise UsageError("this model has no tokenizer, so it cannot read a text")
    with torch.inference_mode():
        return [model(torch.tensor([model.tokenizer.encode(text)[:tokens]], device=model.device), logits=ALL).hidden[0]
                for text in texts]


def nearness(trial: Trial, change: Change, texts: Sequence[str]) -> Judge:
    """How far a model's last hidden states are from those that the whole difference gives: no answers are needed."""
    wanted: list[torch.Tensor] = []

    def keep(model: Decoder) -> float:
        wanted.extend(states(model, texts))
        return 0.0

    trial.judge(change, keep)

    def judge(model: Decoder) -> float:
        found = states(model, texts)
        return sum((a - b).abs().mean().item() for a, b in zip(found, wanted, strict=True)) / len(wanted)

    return judge
