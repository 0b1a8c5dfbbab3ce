"""What a sampler's parts promise, on small random models: order, sameness with plain decoding, and exact accounting."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache

from lithe.contracts.small import decided
from lithe.diffuse.loop import run
from lithe.diffuse.plan import DiffusePlan, plan
from lithe.errors import UnsupportedError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.registry import Entry
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

PROMPTS = ([1, 2, 3], [4, 5, 6, 7, 8, 9, 1], [2])
KINDS = (("full", 0), ("blocks", 4))
MIXED = ("full", 0, 0, 6.0, 8)  # the same with experts, for methods that need them


@cache
def small_model(attends: str, block: int, seed: int = 0, sharp: float = 6.0, experts: int = 0) -> Decoder:
    """Random float64 weights with decided opinions."""
    config = Config(vocab=32, width=32, layers=2, heads=4, kv_heads=2, ffn=64, context=64, attends=attends, block=block,
                    mask_token=31, experts=experts, experts_per_token=2 if experts else 0, expert_ffn=16 if experts else 0)
    return decided(config, seed, sharp)


def texts(made: DiffusePlan, limit: int = 14, law: Law | None = None, prompts: Seq[list[int]] = PROMPTS) -> list[list[int]]:
    """What fills the canvas of each prompt, all in one batch."""
    batch = [Sequence(p, limit=limit, context=made.model.config.context, law=law) for p in prompts]
    for _ in run(made, batch):
        pass
    return [sequence.tokens for sequence in batch]


def fitting(entry: Entry, **knobs: object) -> list[DiffusePlan]:
    """Plans of a method over every kind of model that it takes."""
    knobs = ({"heads": "fresh"} if entry.card.trains else {}) | knobs
    spec = f"{entry.reference}{':' if knobs else ''}{','.join(f'{key}={value}' for key, value in knobs.items())}"
    made = []
    for kind in (MIXED,) if "experts" in entry.card.needs else KINDS:
        try:
            made.append(plan(small_model(*kind), spec))
        except UnsupportedError:
            continue
    assert made, f"{entry.name} runs on no kind of model"
    return made


def check_verbs(entry: Entry) -> None:
    """Texts have the length asked for, hold no open place, and do not depend on batch mates; sampled or greedy."""
    for made in fitting(entry):
        for law in (Law(), Law.of(temperature=0.9)):
            for limit in (1, 13):
                batch = texts(made, limit, law)
                assert [len(text) for text in batch] == [limit] * len(PROMPTS), "a text has not the length asked for"
                assert all(made.mask not in text for text in batch), "a place was left open"
                alone = [texts(made, limit, law, [prompt])[0] for prompt in PROMPTS]
                assert batch == alone, "a text depends on its batch mates"
        for each in made.runs:
            rounds = each.spent.rounds
            assert len(rounds) == each.spent.passes and sum(rounds) == 13, "what was committed does not add up to the text"


def check_same_tokens(entry: Entry) -> None:
    """Greedy texts are those of one token a step, in no more passes."""
    for seed in range(3):
        for kind in KINDS:
            model = small_model(*kind, seed=seed)
            plain, made = plan(model), plan(model, entry.reference)
            for limit in (14, 25):
                assert texts(made, limit) == texts(plain, limit), f"{entry.name} changes what is said"
                assert all(a.spent.passes <= b.spent.passes for a, b in zip(made.runs, plain.runs, strict=True)), "more passes"


def check_one_step_is_plain(entry: Entry) -> None:
    """At the knobs that its ONE names it commits one token a step, the surest: plain decoding."""
    for made in fitting(entry, **entry.module.ONE):
        wanted = texts(plan(made.model))
        assert texts(made) == wanted, f"{entry.name} at {entry.module.ONE} is not plain decoding"
        assert all(each.spent.passes == len(wanted[0]) for each in made.runs), "not one token a step"


def check_level_zero_is_identity(entry: Entry) -> None:
    """At the knobs that its ZERO names nothing stale is read: the texts of no cache."""
    for made in fitting(entry, **entry.module.ZERO):
        assert texts(made) == texts(plan(made.model)), f"{entry.name} at {entry.module.ZERO} differs from no cache"
