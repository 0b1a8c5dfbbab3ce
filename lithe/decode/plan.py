"""A loop's filled slots: the model, what drafts, what shapes its trees and which rules accept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from lithe import registry
from lithe.decode.grow import Grown
from lithe.decode.lanes import Lanes
from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.sampling.sequence import Sequence

SEARCH = "search"  # the shelf of what replaces the whole loop
VERB = {"draft": "draft", "tree": "shape trees", "accept": "decide what is accepted"}
# of decoder and loop; a cache adds what it `can`
HAS = frozenset({"tap:final", "second_model", "corpus", "target_cache", "late", "ghosts", "prediction"})


@dataclass(kw_only=True)
class DecodePlan:
    """Everything `step` needs, checked to be legal before anything runs."""

    model: Decoder
    lanes: Lanes
    greedy: Any  # the rule for greedy sequences
    sampled: Any  # the rule for sampled ones
    draft: Any = None  # None: plain decoding, a tree that is only its root
    search: Any = None  # what replaces the whole loop, if anything does
    kinds: tuple[str, ...] = ("det",)  # of trees that the draft may propose: the rules are exact for these
    name: str = "plain"
    source: str = ""  # where accepted draft tokens come from, unless the draft says more
    taps: tuple[int | str, ...] = ()
    promises: tuple[str, ...] = ("same_tokens", "same_law")
    specs: dict[str, str] = field(default_factory=dict)
    asked: Any = None  # the rule the user named
    mode: Any = field(default_factory=torch.inference_mode)  # made once: to enter it anew costs half as much
    parts: list[Any] = field(default_factory=list)  # the methods' objects, whose sources decide what comes out
    knobs: dict[str, Any] = field(default_factory=dict)  # what was set where: by name, and "slot.name" in a second slot

    @cached_property
    def calm(self) -> bool:
        """Whether nothing beside passes computes with tensors, so that a round need not enter inference mode: 22 us."""
        return self.search is None and (self.draft is None or not getattr(self.draft, "tensors", True))

    @property
    def is_plain(self) -> bool:
        """Whether nothing looks at a token before the next one is made, but where a text ends."""
        return self.draft is None and self.search is None and self.asked is None

    @cached_property
    def is_late(self) -> bool:
        return hasattr(self.draft, "late")

    def rule(self, sequence: Sequence) -> Any:
        """The acceptance rule a sequence's own law asks for. Raises UnsupportedError where it is not the one asked for."""
        rule = self.greedy if sequence.law.greedy else self.sampled
        if self.asked not in (None, rule):
            cure = "give a temperature above 0" if sequence.law.greedy else "use temperature 0"
            raise UnsupportedError(f"{self.specs['accept']} is no rule for this request: {cure}, or leave the rule out")
        return rule


def plan(model: Decoder, *, draft: str | None = None, tree: str | None = None, accept: str | None = None) -> DecodePlan:
    """Fill a plan from specs. Raises UnsupportedError for what this model or combination cannot do.

    draft: a spec of shelf `draft`, or of `search`, which replaces the loop; None for plain decoding. tree: a policy that
    shapes the draft's trees; the baseline draft that it can shape where none is named. accept: a rule for greedy or for sampled
    sequences; by default the exact ones for the kind of tree that is proposed. A text may join specs of several slots, "policy
    + draft + rule".
    """
    slots = _slots(draft=draft, tree=tree, accept=accept)
    if model.config.attends != "causal":
        raise UnsupportedError(f"{model.source or 'this model'} fills masked places in any order: methods of the "
                               "room diffuse decode it")
    if SEARCH in slots:
        return _searching(model, slots)
    if "tree" in slots:
        slots.setdefault("draft", shapeable())
    lead = slots.get("tree", slots.get("draft"))
    kinds = lead.entry.card.emits if lead else ("det",)
    rules = _rules(kinds, slots.get("accept"), draft or "plain decoding")
    built = [rule.entry.module.Method(rule.knobs) for rule in rules]
    made = DecodePlan(model=model, lanes=Lanes(model), greedy=built[0], sampled=built[1], kinds=kinds, parts=built)
    made.asked = None if "accept" not in slots else built[rules.index(slots["accept"])]
    made.specs = {slot: str(spec) for slot, spec in slots.items()}
    made.promises = tuple(promise for rule in rules for promise in rule.entry.card.promises)
    joined = " + " in (draft or "")  # a rule named beside the draft tells plans apart; one given for all does not
    named = [str(spec) for slot, spec in slots.items()
             if spec is lead or (slot == "draft" and spec.values) or (slot == "accept" and joined)]
    made.name = " + ".join(named) or "plain"
    for slot, spec in slots.items():
        prefix = "" if spec is lead else f"{slot}."
        made.knobs |= {prefix + name: value for name, value in dataclasses.asdict(spec.knobs).items()}
    if lead is not None:
        _fill_draft(made, slots["draft"], slots.get("tree"))
    return made


def shapeable() -> registry.Spec:
    """The baseline draft that tells its law at any node. Raises UnsupportedError where the shelf has none."""
    every = (entry for entry in registry.entries("decode", "draft") if entry.card.laws)
    fits = [entry for entry in every if entry.card.row is None and not entry.card.trains]
    if not fits:
        raise UnsupportedError("no baseline draft on the shelf tells its law at any node: name the draft whose trees to shape")
    return registry.Spec(fits[0], {})


def _slots(**texts: str | None) -> dict[str, registry.Spec]:
    """Specs by slot, in the order tree, draft, rule. Raises UsageError for what has no slot, or one that is taken."""
    found: dict[str, registry.Spec] = {}
    for slot, text in texts.items():
        parts = text.split(" + ") if text else ()
        for part in parts:
            spec = _read(part, slot if len(parts) == 1 else None)
            shelf = spec.entry.shelf
            if shelf not in (*texts, SEARCH):
                raise UsageError(f"{spec.entry.address} has no slot in a plan: a plan takes {', '.join(texts)}")
            if len(parts) == 1 and shelf != slot and (slot, shelf) not in (("draft", "tree"), ("draft", SEARCH)):
                raise UsageError(f"{spec.entry.address} stands on shelf {shelf}: it cannot {VERB[slot]}")
            if shelf in found:
                raise UsageError(f"slot {shelf} is filled twice, by {found[shelf]} and {spec}")
            found[shelf] = spec
    return {slot: found[slot] for slot in ("tree", "draft", "accept", SEARCH) if slot in found}


def _read(text: str, slot: str | None) -> registry.Spec:
    """A spec of that slot, or of any; where a draft is wanted a tree policy may be named, which finds its own."""
    if slot == "draft":
        names = {shelf: {said for entry in registry.entries("decode", shelf)
                         for said in (entry.name, entry.address, f"{shelf}/{entry.name}", f"{shelf}={entry.name}")}
                 for shelf in ("draft", "tree", SEARCH)}
        name = text.strip().partition(":")[0]
        slot = next((shelf for shelf in ("tree", SEARCH) if name in names[shelf] - names["draft"]), slot)
    return registry.parse(text, slot)


def _fill_draft(made: DecodePlan, spec: registry.Spec, tree: registry.Spec | None) -> None:
    """Build the draft once the model and cache are known to offer what it needs, and the policy that shapes its trees."""
    lead = tree or spec
    if not lead.entry.card.emits:
        raise UsageError(f"{lead.entry.address} proposes no trees, so it cannot draft")
    needs = spec.entry.card.needs + (tree.entry.card.needs if tree else ())
    missing = [need for need in needs if need not in HAS | made.lanes.cache.can]
    if missing:
        raise UnsupportedError(f"{lead.entry.name} needs {', '.join(missing)}, which this model and cache do not offer")
    made.source = lead.entry.name
    made.taps = tuple(need.removeprefix("tap:") for need in needs if need.startswith("tap:"))
    for card in (spec.entry.card, lead.entry.card):
        made.promises = tuple(promise for promise in made.promises if promise in card.promises)
    if tree is None:
        shares = "target_cache" in needs
        made.draft = _build(spec, ("propose", "observe", *(["join"] if shares else [])), made.model)
        made.parts.append(made.draft)
        made.taps += getattr(made.draft, "taps", ())  # which of the target's layers it reads may depend on its settings
        if shares:
            made.draft.join(made.lanes)
        return
    _check_shaped(spec, tree)
    policy = _build(tree, ("grow",))  # first: to load a model takes longer than to find a setting wrong
    made.draft = Grown(_build(spec, ("reach", "laws"), made.model), policy, made.kinds[0])
    made.taps += getattr(made.draft.draft, "taps", ())
    made.parts += [made.draft.draft, policy]


def _build(spec: registry.Spec, verbs: tuple[str, ...], *given: Any) -> Any:
    """A method's object. Raises UsageError where it lacks a verb of its shelf."""
    built = spec.entry.module.Method(spec.knobs, *given)
    if absent := [verb for verb in verbs if not hasattr(built, verb)]:
        raise UsageError(f"{spec.entry.path}: its Method has no {' and no '.join(absent)}, as its shelf demands")
    return built


def _check_shaped(spec: registry.Spec, tree: registry.Spec) -> None:
    """A draft that a policy shapes must be able to, and none of its settings may be left without effect."""
    if not spec.entry.card.laws:
        able = [entry.name for entry in registry.entries("decode", "draft") if entry.card.laws]
        raise UnsupportedError(f"{tree.entry.name} cannot shape the trees of {spec.entry.name}, which tells no law of its "
                               f"guesses; drafts that do: {', '.join(able)}")
    if idle := [name for name in spec.values if name not in spec.entry.card.laws]:
        raise UsageError(f"{spec.entry.name}: {', '.join(idle)} has no effect where {tree.entry.name} shapes the trees")


def _searching(model: Decoder, slots: dict[str, registry.Spec]) -> DecodePlan:
    """A plan without slots: the method chooses every token itself."""
    spec = slots.pop(SEARCH)
    if slots:
        raise UnsupportedError(f"{spec.entry.name} neither drafts nor verifies, so {', '.join(map(str, slots.values()))} has "
                               "nothing to do: leave it out")
    greedy, sampled = (rule.entry.module.Method(rule.knobs) for rule in _rules(("det",), None, str(spec)))
    made = DecodePlan(model=model, lanes=Lanes(model), greedy=greedy, sampled=sampled, name=str(spec), source=spec.entry.name)
    made.promises = tuple(p for p in spec.entry.card.promises if p in DecodePlan.promises)  # others are not about the output
    made.specs = {SEARCH: str(spec)}
    made.knobs = dataclasses.asdict(spec.knobs)
    made.search = _build(spec, ("prefill", "advance"), model)
    made.parts = [made.search]
    return made


def _rules(kinds: tuple[str, ...], asked: registry.Spec | None, draft: str) -> tuple[registry.Spec, registry.Spec]:
    """The rules for greedy and for sampled sequences: what was asked for, else the exact ones for these trees."""
    greedy, sampled = exact_rule(kinds, "same_tokens"), exact_rule(kinds, "same_law")
    if asked is None:
        return greedy, sampled
    card = asked.entry.card
    if unfit := set(kinds) - set(card.takes):
        raise UnsupportedError(f"{asked.entry.name} is not exact for {', '.join(unfit)} trees, which {draft} proposes; "
                               f"it takes {', '.join(card.takes)}")
    return (asked, sampled) if asked.entry.module.Method(asked.knobs).greedy else (greedy, asked)


def exact_rule(kinds: tuple[str, ...], promise: str) -> registry.Spec:
    """The baseline on the shelf that keeps this promise for these kinds of trees."""
    fits = [e for e in registry.entries("decode", "accept")
            if promise in e.card.promises and e.card.row is None and set(kinds) <= set(e.card.takes)]
    if not fits:
        raise UnsupportedError(f"no acceptance rule on the shelf is exact for {', '.join(kinds)} trees")
    return registry.Spec(min(fits, key=lambda e: (len(e.card.takes), e.name)), {})
