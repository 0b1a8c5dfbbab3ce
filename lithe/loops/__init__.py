"""Which loop a model decodes by: left to right, or a canvas filled in any order. What is above asks here and need not know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Seq
from typing import Any

from lithe.decode import generate as decode, loop as decode_loop
from lithe.decode.plan import DecodePlan, plan as decode_plan
from lithe.diffuse import generate as diffuse, loop as diffuse_loop
from lithe.diffuse.plan import DiffusePlan, plan as diffuse_plan
from lithe.errors import UnsupportedError
from lithe.model.decoder import Decoder
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from lithe.sampling.step import Step

Plan = DecodePlan | DiffusePlan


def generate(model: Decoder, prompt: str | Seq[int] | Seq[str] | Seq[Seq[int]], **settings: Any) -> Iterator[Step]:
    """Generate, yielding one Step a round and sequence: settings are those of `lithe.decode.generate.generate` (draft, tree,
    accept, max_tokens, temperature, ...), for a diffusion model those of `lithe.diffuse.generate.generate` (method, ...).
    """
    return (decode if model.config.attends == "causal" else diffuse).generate(model, prompt, **settings)


def run(plan: Plan, sequences: list[Sequence]) -> Iterator[Step]:
    """Rounds of either loop until every sequence has finished."""
    return diffuse_loop.run(plan, sequences) if isinstance(plan, DiffusePlan) else decode_loop.run(plan, sequences)


def step(plan: Plan, sequences: list[Sequence]) -> list[Step]:
    """One round of either loop for these sequences, none of which has finished."""
    return diffuse_loop.step(plan, sequences) if isinstance(plan, DiffusePlan) else decode_loop.step(plan, sequences)


def check(plan: Plan, sequence: Sequence) -> None:
    """Raise the LitheError that says why a request cannot be had by this plan."""
    if isinstance(plan, DiffusePlan):
        diffuse_loop.check(plan, sequence)
    else:
        plan.rule(sequence)


def plan_of(model: Decoder, method: str | None) -> Plan:
    """The plan of one text, which names every method of it; None: plain."""
    if model.config.attends == "causal":
        return decode_plan(model, draft=method)
    return diffuse_plan(model, *([method] if method else ()))


def prepare(model: Decoder, methods: Seq[str], slots: dict[str, Any], **law: Any) -> tuple[Plan, Law]:
    """A plan from specs of diffusion methods or from a decoding plan's slots, and the law that settings by name ask for."""
    warps = slots.pop("warps", ())
    if model.config.attends == "causal":
        if methods:
            raise UnsupportedError(f"{methods[0]} fills masked places, and this model reads from left to right")
        return decode_plan(model, **slots), Law.wished(model.settings, *warps, **law)
    if given := [str(spec) for slot, spec in slots.items() if spec]:
        raise UnsupportedError(f"{given[0]} is for models that read from left to right, and this one fills masked places")
    return diffuse_plan(model, *methods), diffuse.read_law(model, *warps, **law)
