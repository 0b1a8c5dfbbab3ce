"""What a method says of itself: its card, its promises, its knobs. Standard library only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lithe.errors import UsageError

PROMISES = {
    "same_tokens": "greedy output is identical to plain decoding",
    "same_law": "sampled output has exactly the target's distribution",
    "one_step_is_plain": "with one token a step it is plain decoding",
    "zero_at_start": "before training it changes nothing",
    "merge_equals_wrap": "merged into the weights it computes the same as beside them",
    "touches_only": "it changes only the entries it names",
    "level_zero_is_identity": "at level zero the model is unchanged",
    "meets_budget": "the result meets the budget asked",
    "n_of_m": "every group of M weights keeps at most N",
    "masked_equals_cut": "the masked model equals the physically smaller one",
    "same_when_full": "with everything kept it equals the dense computation",
    "valid": "every text that it lets end is one that was asked for",
    "subset": "what it keeps is a subset of what it was given, renormalised",
}

NEEDS = {
    "tree": "a target and cache that verify token trees in one pass",
    "gather": "a cache that can keep chosen rows of a pass",
    "second_model": "a second model with the same tokenizer",
    "target_cache": "the target's own cache, to draft on before a pass overwrites what was drafted",
    "late": "a word between the target's pass and the walk: what was drafted meanwhile",
    "corpus": "a text to look things up in, which the knob of that name names",
    "prediction": "what a request foretells of its text; without it nothing is drafted",
    "tap:final": "the last hidden state of every verified row",
    "full": "a diffusion model in which every place sees every other",
    "blocks": "a diffusion model trained on blocks, which sees those not after its own",
    "experts": "a model whose layers are mixtures of experts",
    "no unmask": "no other word on what is committed",
    "no refresh": "nothing kept between passes",
    "inputs": "a calibration text, for sums of what the sites of a block read",
    "moments": "the same, for second moments of it",
    "gradients": "the same, for gradients of the loss",
    "loss": "the same, for what a plan loses in the end",
    "pairs": "low-rank layers, which a step before it makes",
    "ghosts": "rows of the verifying pass that nobody sees and nothing keeps, whose logits go to the draft",
}

# How the children of a tree node came to be; an acceptance rule says which it takes.
KINDS = ("det", "chain", "iid", "wor")


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts of a method that can be known without importing it. Literals only: it is read with `ast`.

    paper: title of the paper, or the baseline's common name. row: its number in papers.toml, None for baselines.
    promises: words of PROMISES, each backed by a contract test. needs: words of NEEDS, checked before a run.
    emits: (drafts, tree policies) kinds of tree nodes it proposes. takes: (acceptance rules) kinds it is exact for.
    laws: (drafts that can tell their law at any node of a tree) the knobs that count where a tree policy shapes the guesses.
    trains: True where it has weights to fit. shelf: "room/shelf", said only by a file outside the package.
    """

    paper: str
    row: int | None = None
    promises: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    emits: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    trains: bool = False
    shelf: str | None = None

    def __post_init__(self) -> None:
        for field, known in (("promises", PROMISES), ("needs", NEEDS), ("emits", KINDS), ("takes", KINDS)):
            for word in getattr(self, field):
                if word not in known:
                    raise UsageError(f"card of {self.paper!r}: {field} has unknown word {word!r}; known: {', '.join(known)}")

    @property
    def lossless(self) -> bool:
        return "same_tokens" in self.promises or "same_law" in self.promises


def knob(default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """A dataclass field with one line of help and its legal range (both ends included)."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def check_knobs(knobs: Any, method: str) -> None:
    """Raise UsageError when a value lies outside the range its knob declares."""
    for field in dataclasses.fields(knobs):
        value, meta = getattr(knobs, field.name), field.metadata
        where = f"{method}: knob {field.name}={value!r}"
        if meta.get("choices") and value not in meta["choices"]:
            raise UsageError(f"{where} is not one of {', '.join(map(str, meta['choices']))}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value != value:
                raise UsageError(f"{where} is not a number")
            if meta.get("low") is not None and value < meta["low"]:
                raise UsageError(f"{where} is below {meta['low']}, its least value")
            if meta.get("high") is not None and value > meta["high"]:
                raise UsageError(f"{where} is above {meta['high']}, its greatest value")
