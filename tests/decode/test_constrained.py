"""Constrained decoding is one law, whoever drafts: tokens, sampled laws and ends are those of constrained plain decoding."""

from functools import partial

import pytest
import torch

from lithe import registry
from lithe.contracts import accept, draft as contract, tree as policies
from lithe.contracts.small import small_model
from lithe.decode import forced
from lithe.decode.loop import run
from lithe.decode.plan import exact_rule, plan
from lithe.errors import UnsupportedError
from lithe.sampling.constraint import Constraint, ConstraintError
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.decode.languages import Automaton, varied

LOSSLESS = [e for shelf in ("draft", "tree") for e in registry.entries("decode", shelf) if "same_tokens" in e.card.promises]
RULES = [e for e in registry.entries("decode", "accept") if "same_law" in e.card.promises]


def decoded(made, program, prompts=contract.PROMPTS, limit=24, law=None, ends=(0,)):
    batch = [Sequence(p, limit=limit, context=made.model.config.context, eos=ends, constraint=program, law=law, seed=i)
             for i, p in enumerate(prompts)]
    steps = list(run(made, batch))
    return [(s.tokens, s.finished) for s in batch], steps


@pytest.mark.parametrize("entry", LOSSLESS, ids=lambda entry: f"{entry.shelf}-{entry.name}")
def test_every_draft_keeps_constrained_tokens(entry):
    target = small_model()
    plain, _ = decoded(plan(target), varied(32, forcing=False))
    free, _ = decoded(plan(target), None)
    assert plain != free
    made = plan(target, draft=contract.suited(entry, target))
    assert decoded(made, varied(32))[0] == plain
    assert [decoded(made, varied(32), [prompt])[0][0] for prompt in contract.PROMPTS[:2]] == plain[:2]


def test_some_of_a_batch_may_be_free():
    target = small_model()
    made = plan(target, draft=contract.suited(registry.find("prompt_lookup", "draft"), target))
    free, bound = (Sequence([3, 4, 3, 4], limit=20, context=64, constraint=c) for c in (None, varied(32)))
    list(run(made, [free, bound]))
    alone = [decoded(plan(target), c, [[3, 4, 3, 4]], 20, ends=())[0][0][0] for c in (None, varied(32))]
    assert [free.tokens, bound.tokens] == alone


def test_forced_tokens_skip_passes_and_say_where_they_come_from():
    slow, fast = (decoded(plan(small_model()), varied(32, forcing=on)) for on in (False, True))
    assert slow[0] == fast[0]
    assert len(fast[1]) < 0.6 * len(slow[1])
    told = [source for step in fast[1] for source in step.sources]
    assert {"constraint", ""} == set(told) and told.count("constraint") > 30


@pytest.mark.parametrize("entry", RULES, ids=lambda entry: entry.name)
def test_the_constrained_law_by_enumeration(entry):
    """Rule and mask together, over trees of every kind that the rule takes: the joint law is the masked target's."""
    rule = accept.method(entry)
    for kind in entry.card.takes:
        for seed in (2, 5, 8):
            p_V, q_V = accept.random_pair(seed)
            language = Automaton({0: {0: 1, 2: 0, 3: 1}, 1: {1: 0, 3: 1}}, set(), len(p_V))
            raw = accept.everywhere(p_V.clamp_min(1e-3) / p_V.clamp_min(1e-3).sum())
            target = partial(masked_law, raw, language)
            for width, depth in ((1, 1), (1, 2)) if kind == "chain" else ((1, 2), (2, 1)):
                error = accept.law_error(walks(rule, raw, language), target, accept.everywhere(q_V),
                                         partial(accept.propose, kind, width=width, depth=depth), depth)
                assert error < accept.EXACT, f"{kind}, seed {seed}: off by {error:.3g}"


@pytest.mark.parametrize("entry", registry.entries("decode", "tree"), ids=lambda entry: entry.name)
def test_policies_under_a_constraint_by_enumeration(entry):
    kind = entry.card.emits[0]
    rule = exact_rule((kind,), "same_law").entry.module.Method(None)
    policy = entry.module.Method(entry.knobs(**contract.modest(entry)))
    p_V, q_V = accept.pair((0.2, 0.3, 0.5), (0.5, 0.1, 0.4))
    language = Automaton({0: {0: 1, 2: 0}, 1: {1: 0}}, set(), 3)
    raw = accept.everywhere(p_V)
    try:
        error = accept.law_error(walks(rule, raw, language), partial(masked_law, raw, language), accept.everywhere(q_V),
                                 partial(policies.grown, policy, kind, depth=1), 1)
    except accept.outcomes.__globals__["Continuous"]:
        pytest.skip("its noise has no branches to take one by one; its tokens are compared above")
    assert error < accept.EXACT


@pytest.mark.parametrize("kind", ["det", "chain", "iid", "wor"])
def test_forced_chains_keep_the_law_in_trees_of_every_kind(kind):
    rule = exact_rule((kind,), "same_law").entry.module.Method(None)
    language = Automaton({0: {1: 1}, 1: {2: 2}, 2: {0: 0, 2: 0}}, set(), 3)
    raw = accept.everywhere(accept.pair((0.2, 0.3, 0.5), (1, 0, 0))[0])

    def grow(draft, dice):
        return forced._chain(accept.Tree.root(accept.ROOT, kind), [1, 2], 3)

    target = partial(masked_law, raw, language)
    assert accept.law_error(walks(rule, raw, language), target, target, grow, 2) < accept.EXACT
    walk = walks(rule, raw, language)(grow(None, None), None, accept.Dice(torch.Generator().manual_seed(0)))
    assert walk.path == (1, 2), "a forced token was not accepted"


def test_two_sampled_tokens_have_the_constrained_law_in_the_loop():
    target = small_model(vocab=5, context=16, scale=1.0)
    language = Automaton({0: {1: 1, 2: 0, 4: 0}, 1: {0: 0, 3: 0}}, set(), 5)
    law, prompt = Law.of(temperature=0.9), [1, 2, 3, 1, 2]
    made = plan(target, draft=contract.suited(registry.find("draft_model", "draft"), target))
    counts = torch.zeros(5, 5, dtype=torch.float64)
    for start in range(0, 600, 300):
        batch = [Sequence(prompt, limit=2, context=16, law=law, seed=start + i, constraint=language) for i in range(300)]
        list(run(made, batch))
        for sequence in batch:
            counts[tuple(sequence.tokens)] += 1
    rows = [[*prompt, token] for token in range(5)]
    logits = target(torch.tensor(rows), logits="all").logits[:, -2:].detach()
    keep = torch.tensor([[t in language.table[language.table[0].get(a, 0)] for t in range(5)] for a in range(5)])
    begin = torch.tensor([[t in language.table[0] for t in range(5)]])
    first = law(logits[:1, 0].masked_fill(~begin, -torch.inf))[0].softmax(-1)
    expected = first[:, None] * law(logits[:, 1].masked_fill(~keep, -torch.inf)).softmax(-1)
    seen = expected > 0
    assert (counts[~seen] == 0).all()
    assert contract.chi_squared(counts[seen], expected[seen]) < 40


def test_ends_and_what_cannot_go_on():
    target = small_model()
    once = Automaton({0: {4: 1, 5: 1}, 1: {6: 2}, 2: {}}, {2}, 32)
    (tokens, finished), = decoded(plan(target), once, [[1, 2]], ends=())[0]
    assert (tokens[1:], finished) == ([6], "stop")
    (_, finished), = decoded(plan(target), varied(32), [[1, 2]], limit=3)[0]
    assert finished == "length"
    dead = Automaton({0: {4: 1}, 1: {}}, set(), 32)
    with pytest.raises(ConstraintError, match="no token to go on") as caught:
        decoded(plan(target), dead, [[1, 2]])
    assert caught.value.sequence.tokens == []


def test_what_replaces_the_loop_cannot_be_constrained():
    target = small_model()
    entry = next(e for e in registry.entries("decode", "search") if "second_model" not in e.card.needs)
    with pytest.raises(UnsupportedError, match="cannot be constrained"):
        decoded(plan(target, draft=contract.suited(entry, target)), varied(32))


def masked_law(raw, language, text):
    """The constrained target's law, straight from the table."""
    state = 0
    for token in text:
        state = language.table[state].get(token)
        if state is None:
            return raw(text)  # after what may not be said: never asked for with any weight
    p_V = raw(text) * torch.tensor([float(token in language.table[state]) for token in range(language.vocab)])
    return p_V / p_V.sum()


def walks(rule, raw, language):
    """The rule on raw scores under the real mask."""
    return lambda tree, scores, dice: rule.walk(tree, Constraint(language).mask([], tree, accept.scores(tree, raw)), dice)
