"""What replaces the whole loop: it may change what is said, but not how a request is kept."""

from __future__ import annotations

from collections.abc import Iterable

from lithe.contracts.draft import PROMPTS, suited
from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan
from lithe.registry import Entry
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence


def check_verbs(entry: Entry) -> None:
    """Texts have the length asked for, do not depend on batch mates or on what was asked before, and end where they should."""
    for seed in (0, 1):
        target = small_model(seed=seed, layers=4)
        made = plan(target, draft=suited(entry, target))
        for law in (Law(), Law.of(temperature=0.9)):
            for limit in (1, 17, 1000):
                batch = texts(made, PROMPTS, limit, law)
                wanted = [min(limit, target.config.context - len(prompt)) for prompt in PROMPTS]
                assert list(map(len, batch)) == wanted, f"texts are not as long as asked for at limit {limit}"
                alone = [texts(made, [prompt], limit, law)[0] for prompt in PROMPTS]
                assert batch == alone, f"a text depends on its batch mates at limit {limit}"
        whole = texts(made, PROMPTS, 30)
        ends = {text[len(text) // 2] for text in whole}
        cut = texts(made, PROMPTS, 30, ends=ends)
        if getattr(entry.module.Method, "weighs_whole_texts", False):  # an end may let another text win: yet it ends there
            whole = cut
        assert cut == [until(text, ends) for text in whole], "an end is missed"


def check_level_zero_is_identity(entry: Entry) -> None:
    """At the knobs that its ZERO names, it is plain decoding: greedy and sampled, token for token."""
    knobs = ",".join(f"{name}={value}" for name, value in entry.module.ZERO.items())
    target = small_model(layers=4)
    spec = suited(entry, target)
    made = plan(target, draft=f"{spec}{',' if ':' in spec else ':'}{knobs}")
    for law in (Law(), Law.of(temperature=0.9)):
        plain = texts(plan(target), PROMPTS, 40, law)
        assert texts(made, PROMPTS, 40, law) == plain, f"at {knobs} it differs from plain decoding"


def texts(made: DecodePlan, prompts: Iterable[list[int]], limit: int, law: Law | None = None,
          ends: Iterable[int] = ()) -> list[list[int]]:
    """What is generated after each prompt, all in one batch."""
    batch = [Sequence(p, limit=limit, context=made.model.config.context, law=law, eos=ends) for p in prompts]
    for _ in run(made, batch):
        pass
    return [sequence.tokens for sequence in batch]


def until(text: list[int], ends: set[int]) -> list[int]:
    """A text up to the first end, which is part of it."""
    return text[: next((i + 1 for i, token in enumerate(text) if token in ends), len(text))]
