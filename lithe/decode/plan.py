"""A loop's filled slots: the model, what drafts and which rules accept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lithe import registry
from lithe.decode.lanes import Lanes
from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.sampling.sequence import Sequence

SEARCH = "search"  # the shelf of what replaces the whole loop
HAS = frozenset({"tap:final", "second_model", "corpus", "target_cache"})  # of decoder and loop; a cache adds what it `can`


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

    def rule(self, sequence: Sequence) -> Any:
        """The acceptance rule a sequence's own law asks for. Raises UnsupportedError where it is not the one asked for."""
        rule = self.greedy if sequence.law.greedy else self.sampled
        if self.asked not in (None, rule):
            cure = "give a temperature above 0" if sequence.law.greedy else "use temperature 0"
            raise UnsupportedError(f"{self.specs['accept']} is no rule for this request: {cure}, or leave the rule out")
        return rule


def plan(model: Decoder, *, draft: str | None = None, accept: str | None = None) -> DecodePlan:
    """Fill a plan from specs. Raises UnsupportedError for what this model or combination cannot do.

    draft: a spec of shelf `draft`, or of `search`, which replaces the loop; None for plain decoding. accept: a rule for
    greedy or for sampled sequences; by default the exact ones for the kind of tree that the draft proposes.
    """
    spec = registry.parse(draft, _shelf(draft)) if draft else None
    if spec is not None and spec.entry.shelf == SEARCH:
        return _searching(model, spec, accept)
    asked = registry.parse(accept, "accept") if accept else None
    kinds = spec.entry.card.emits if spec else ("det",)
    rules = _rules(kinds, asked, draft or "plain decoding")
    built = [rule.entry.module.Method(rule.knobs) for rule in rules]
    made = DecodePlan(model=model, lanes=Lanes(model), greedy=built[0], sampled=built[1], kinds=kinds)
    made.asked = None if asked is None else built[rules.index(asked)]
    made.specs = {slot: str(s) for slot, s in (("draft", spec), ("accept", asked)) if s}
    made.promises = tuple(promise for rule in rules for promise in rule.entry.card.promises)
    if spec is not None:
        _fill_draft(made, spec)
    return made


def _fill_draft(made: DecodePlan, spec: registry.Spec) -> None:
    """Build the draft once the model and cache are known to offer what it needs."""
    card = spec.entry.card
    if not card.emits:
        raise UsageError(f"{spec.entry.address} proposes no trees, so it cannot draft")
    missing = [need for need in card.needs if need not in HAS | made.lanes.cache.can]
    if missing:
        raise UnsupportedError(f"{spec.entry.name} needs {', '.join(missing)}, which this model and cache do not offer")
    made.name, made.source = str(spec), spec.entry.name
    made.taps = tuple(need.removeprefix("tap:") for need in card.needs if need.startswith("tap:"))
    made.promises = tuple(promise for promise in card.promises if promise in made.promises)
    made.draft = _built(made, spec, "propose", "observe", *(("join",) if "target_cache" in card.needs else ()))
    if "target_cache" in card.needs:
        made.draft.join(made.lanes)


def _searching(model: Decoder, spec: registry.Spec, accept: str | None) -> DecodePlan:
    """A plan without slots: the method chooses every token itself."""
    if accept is not None:
        raise UnsupportedError(f"{spec.entry.name} verifies nothing, so {accept} has nothing to accept: leave the rule out")
    greedy, sampled = (rule.entry.module.Method(rule.knobs) for rule in _rules(("det",), None, str(spec)))
    made = DecodePlan(model=model, lanes=Lanes(model), greedy=greedy, sampled=sampled, name=str(spec), source=spec.entry.name)
    made.promises = tuple(p for p in spec.entry.card.promises if p in DecodePlan.promises)  # others are not about the output
    made.specs = {SEARCH: str(spec)}
    made.search = _built(made, spec, "prefill", "advance")
    return made


def _built(made: DecodePlan, spec: registry.Spec, *verbs: str) -> Any:
    method = spec.entry.module.Method(spec.knobs, made.model)
    if absent := [verb for verb in verbs if not hasattr(method, verb)]:
        raise UsageError(f"{spec.entry.path}: its Method has no {' and no '.join(absent)}, as shelf {spec.entry.shelf} asks")
    return method


def _shelf(text: str) -> str:
    """Where a spec's method lies: on shelf `search` if that has its name, else among the drafts."""
    name = text.strip().partition(":")[0]
    forms = ("{}", f"{SEARCH}={{}}", f"{SEARCH}/{{}}", f"decode/{SEARCH}/{{}}")
    return SEARCH if name in {form.format(e.name) for e in registry.entries("decode", SEARCH) for form in forms} else "draft"


def _rules(kinds: tuple[str, ...], asked: registry.Spec | None, draft: str) -> tuple[registry.Spec, registry.Spec]:
    """The rules for greedy and for sampled sequences: what was asked for, else the exact ones for these trees."""
    greedy, sampled = _exact_rule(kinds, "same_tokens"), _exact_rule(kinds, "same_law")
    if asked is None:
        return greedy, sampled
    card = asked.entry.card
    if unfit := set(kinds) - set(card.takes):
        raise UnsupportedError(f"{asked.entry.name} is not exact for {', '.join(unfit)} trees, which {draft} proposes; "
                               f"it takes {', '.join(card.takes)}")
    return (asked, sampled) if asked.entry.module.Method(asked.knobs).greedy else (greedy, asked)


def _exact_rule(kinds: tuple[str, ...], promise: str) -> registry.Spec:
    """The baseline on the shelf that keeps this promise for these kinds of trees."""
    fits = [e for e in registry.entries("decode", "accept")
            if promise in e.card.promises and e.card.row is None and set(kinds) <= set(e.card.takes)]
    if not fits:
        raise UnsupportedError(f"no acceptance rule on the shelf is exact for {', '.join(kinds)} trees")
    return registry.Spec(min(fits, key=lambda e: (len(e.card.takes), e.name)), {})
