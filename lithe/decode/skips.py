"""Which halves of which layers a model leaves out when it drafts for itself: sets, their score, and the search for a good one.

A part is (layer, "attn" or "mlp"); a set is a sorted tuple of parts. The first and the last layer always run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from pathlib import Path
from random import Random

import torch

from lithe.errors import FormatError, UsageError
from lithe.model.cache import PlainCache
from lithe.model.decoder import ALL, Decoder
from lithe.ops.process import posterior

Part = tuple[int, str]
Skip = tuple[Part, ...]
KAPPA, NOISE = 2.5, 1e-2  # of the Bayesian proposals: weight of what is uncertain, variance of a score
POOL, MEMORY = 512, 200  # sets weighed for a Bayesian proposal; tried sets it looks back on, for the cost grows with their cube


def parts(layers: int) -> list[Part]:
    """All that may be left out."""
    return [(i, half) for i in range(1, layers - 1) for half in ("attn", "mlp")]


def even(layers: int, ratio: float) -> Skip:
    """A share of the parts: every odd layer first, then the others, until there are enough."""
    known = sorted(parts(layers), key=lambda part: part[0] % 2 == 0)
    return tuple(sorted(known[: int(len(known) * ratio)]))


def matchness(model: Decoder, cache: PlainCache, lane: int, ids: Seq[int], skip: Skip, window: int) -> float:
    """The share of the last `window` tokens that the model without these parts would have chosen, from one pass.

    cache holds all tokens but the last; it is not touched: the pass reads a copy of the lane.
    """
    twin, start = cache.fork([lane]), len(ids) - 1 - window
    twin.truncate([start])
    rows = torch.tensor([list(ids[start:-1])], device=model.device)
    guessed = model(rows, cache=twin, skip=skip, logits=ALL).scores[0].argmax(-1).tolist()
    return sum(a == b for a, b in zip(guessed, ids[start + 1 :], strict=True)) / window


class Search:
    """SWIFT's search: sets of one size, tried at random and now and then where a Gaussian process expects more."""

    def __init__(self, start: Skip, layers: int, *, every: int, stop: float, patience: int, most: int):
        """every: a Bayesian proposal each so many. It ends above score `stop`, after `patience` in vain, or after `most`."""
        self.parts, self.best, self.score = parts(layers), start, -1.0  # not known before `start` was tried
        self.every, self.stop, self.patience, self.most = every, stop, patience, most
        self.dice = Random(0)
        self.tried: list[tuple[Skip, float]] = []
        self.idle = 0
        self.gains: list[float] = []  # the best score, whenever it rose

    @property
    def done(self) -> bool:
        """Nothing to choose counts as found."""
        fixed = not 0 < len(self.best) < len(self.parts)
        return fixed or self.score > self.stop or self.idle >= self.patience or len(self.tried) >= self.most

    def propose(self) -> Skip:
        """The set to try next: at first the one it began with."""
        if not self.tried:
            return self.best
        return self._bayes() if len(self.tried) % self.every == 0 else self._random()

    def tell(self, skip: Skip, score: float) -> None:
        """How well a set did."""
        self.tried.append((skip, score))
        self.idle += 1
        if score > self.score:
            self.best, self.score, self.idle = skip, score, 0
            self.gains.append(score)

    def _random(self) -> Skip:
        return tuple(sorted(self.dice.sample(self.parts, len(self.best))))

    def _bayes(self) -> Skip:
        """Of many random sets the one with the highest upper bound."""
        pool, recent = [self._random() for _ in range(POOL)], self.tried[-MEMORY:]
        scores = torch.tensor([score for _, score in recent], dtype=torch.float64)
        mean, deviation = posterior(self._vectors([s for s, _ in recent]), scores, self._vectors(pool), noise=NOISE)
        return pool[int((mean + KAPPA * deviation).argmax())]

    def _vectors(self, skips: list[Skip]) -> torch.Tensor:
        return torch.tensor([[part in skip for part in self.parts] for skip in skips], dtype=torch.float64)


def read(path: str, layers: int) -> Skip:
    """A set kept in a JSON file. Raises UsageError or FormatError for one that is not there or is not for this model."""
    try:
        said = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"cannot read the skip set {path}: {problem}") from None
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"the skip set {path} is not JSON: {problem}") from None
    if not isinstance(said, dict) or said.get("layers") != layers:
        raise FormatError(f"{path} holds no skip set of a model of {layers} layers")
    found, known = said.get("skip"), {json.dumps(part): part for part in parts(layers)}
    if not isinstance(found, list) or any(json.dumps(part) not in known for part in found):
        raise FormatError(f"{path}: skip must list [layer, half], layers 1 to {layers - 2}, halves attn and mlp")
    return tuple(sorted({known[json.dumps(part)] for part in found}))


def write(path: str, layers: int, skip: Skip, score: float) -> None:
    """Keep a set for another time."""
    text = json.dumps({"layers": layers, "skip": [list(part) for part in skip], "score": score})
    try:
        Path(path).expanduser().write_text(text + "\n", encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"cannot keep the skip set in {path}: {problem}") from None
