"""Drafts that do their worst: the text stays the model's own, and what is no tree at all is told apart from a wrong guess."""

import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lithe import registry
from lithe.contracts.draft import chi_squared, joint_law, suited
from lithe.contracts.small import small_model
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.errors import LitheError, UnsupportedError, UsageError
from lithe.model.tokenizer import Stream
from lithe.ops.accept import without
from lithe.ops.tree import Tree, Walk
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.bench.folder import small_text_model
from tests.bench.methods import HEAD, WARM

CONTEXT, VOCAB = 64, 32
PROMPTS = ([1], [3, 4, 5, 3, 4], [7] * 17, list(range(31)), [9, 2] * 31, [5] * 63)
RULES = [e for e in registry.entries("decode", "accept") if "same_law" in e.card.promises and "det" in e.card.takes]
RULE = RULES[0].name if RULES else None
ENTRIES = registry.entries("decode", "draft")
DRAFTS, NAMES = [suited(entry, small_model()) for entry in ENTRIES], [entry.name for entry in ENTRIES]
FEW = settings(max_examples=25, deadline=None, derandomize=True)


class Planted:
    """Proposes whatever `grow(sequence, room)` makes, and keeps what it was told."""

    def __init__(self, grow):
        self.grow, self.seen = grow, []

    def propose(self, sequences, room):
        return [self.grow(sequence, most) for sequence, most in zip(sequences, room, strict=True)]

    def observe(self, rounds):
        self.seen += rounds


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Make a plan whose draft is `grow`; its card says what kind of trees these are."""
    folder = tmp_path_factory.mktemp("planted")

    def make(grow, model, kind="det", accept=None):
        path = folder / f"planted_{kind}.py"
        path.write_text(HEAD.format(what="Planted").replace('("det",)', f'("{kind}",)').replace('"same_tokens",', ""))
        made = plan(model, draft=str(path), accept=accept)
        made.draft = Planted(grow)
        return made

    return make


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A law that samples."""
    path = tmp_path_factory.mktemp("warm") / "warm.py"
    path.write_text(WARM)
    return Law.of(str(path))


@cache
def truth(prompt: tuple[int, ...], text: bool = False) -> list[int]:
    """What the model says greedily, by whole passes without cache, tree or loop."""
    model = small_text_model() if text else small_model()
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < CONTEXT:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def wild(dice: random.Random, sequence: Sequence, ids: list[int], vocab: int) -> Tree:
    """A random tree: often right for a while, with twins among siblings, often deeper or larger than there is room for."""
    tree = Tree.root(sequence.ids[-1])
    depths = [0]
    for _ in range(dice.choice((0, 0, 1, 2, 5, 20, 90, 200))):
        parent = dice.choice((0, len(tree) - 1, len(tree) - 1, dice.randrange(len(tree))))
        at = len(sequence.ids) + depths[parent]
        right = at < len(ids) and dice.random() < 0.7
        tree.add(ids[at] if right else dice.randrange(vocab), parent, source=dice.choice((None, "here", "there")))
        depths.append(depths[parent] + 1)
    return tree


def some_of(dice: random.Random, sequences: list[Sequence]) -> list[Sequence]:
    """A part of them in any order, as a server might run: others wait, join or have left."""
    return dice.sample(sequences, dice.randint(1, len(sequences)))


def cut(ids: list[int], prompt: int, limit: int, ends) -> list[int]:
    """The tokens that are generated of all that the model would say."""
    out = ids[prompt : prompt + limit]
    return next((out[: i + 1] for i, token in enumerate(out) if token in ends), out)


@FEW
@given(st.integers(0, 2**32), st.lists(st.tuples(st.sampled_from(PROMPTS), st.integers(1, 70)), min_size=1, max_size=6),
       st.sets(st.integers(0, VOCAB - 1), max_size=3))
def test_no_draft_and_no_schedule_changes_greedy_text(planted, seed, asked, ends):
    dice = random.Random(seed)
    made = planted(lambda s, room: wild(dice, s, truth(tuple(s.ids[: s.prompt])), VOCAB), small_model())
    batch = [Sequence(prompt, limit=limit, context=CONTEXT, eos=ends) for prompt, limit in asked]
    steps = []
    while alive := [sequence for sequence in batch if not sequence.finished]:
        steps += step(made, some_of(dice, alive))
    for sequence, (prompt, limit) in zip(batch, asked, strict=True):
        expected = cut(truth(tuple(prompt)), len(prompt), limit, ends)
        assert sequence.tokens == expected
        assert sequence.finished == ("eos" if expected[-1] in ends else "length")
        mine = [done for done in steps if done.sequence is sequence]
        assert [token for done in mine for token in done.tokens] == expected
        assert [word for done in mine for word in done.sources] == sequence.sources
    for heard in made.draft.seen:
        assert list(heard.walk.path) == heard.tree.path(heard.walk.path[-1] if heard.walk.path else 0)
        assert heard.logits_NV.shape == (len(heard.tree), VOCAB)


@FEW
@given(st.integers(0, 2**32), st.lists(st.tuples(st.sampled_from(PROMPTS[:4]), st.integers(1, 40)), min_size=1, max_size=3),
       st.data())
def test_stop_strings_cut_a_wild_tree_where_they_cut_plain_text(planted, seed, asked, data):
    model, dice = small_text_model(), random.Random(seed)
    prompts = [[token % 28 for token in prompt] for prompt, _ in asked]
    said = [model.tokenizer.decode(truth(tuple(prompt), text=True)[len(prompt) :]) for prompt in prompts]
    starts = st.tuples(st.sampled_from(said), st.integers(0, 20), st.integers(1, 4))
    stops = [text[at : at + length] for text, at, length in data.draw(st.lists(starts, max_size=3))]
    made = planted(lambda s, room: wild(dice, s, truth(tuple(s.ids[: s.prompt]), text=True), 28), model)
    batch = [Sequence(prompt, limit=limit, context=CONTEXT, stops=stops, stream=Stream(model.tokenizer, prompt))
             for prompt, (_, limit) in zip(prompts, asked, strict=True)]
    texts = dict.fromkeys((sequence.number for sequence in batch), "")
    while alive := [sequence for sequence in batch if not sequence.finished]:
        for done in step(made, some_of(dice, alive)):
            texts[done.sequence.number] += done.text
    for sequence in batch:
        tokens, text, finished = stopped(model, truth(tuple(sequence.ids[: sequence.prompt]), text=True), sequence)
        assert (sequence.tokens, texts[sequence.number], sequence.finished) == (tokens, text, finished)


def stopped(model, ids: list[int], sequence: Sequence) -> tuple[list[int], str, str]:
    """The tokens, text and end of plain decoding, read off the whole text after each token."""
    for end in range(sequence.prompt + 1, sequence.prompt + sequence.limit + 1):
        tokens = ids[sequence.prompt : end]
        text = model.tokenizer.decode(tokens)
        if cuts := [at for stop in sequence.stops if (at := text.find(stop)) >= 0]:
            return tokens, text[: min(cuts)], "stop"
    return tokens, text, "length"


@pytest.mark.parametrize("draft", DRAFTS, ids=NAMES)
def test_shipped_drafts_keep_the_text_under_any_schedule(draft):
    made, dice = plan(small_model(), draft=draft), random.Random(1)
    for _ in range(4):
        batch = [Sequence(prompt, limit=dice.randint(1, 60), context=CONTEXT) for prompt in dice.choices(PROMPTS, k=5)]
        while alive := [sequence for sequence in batch if not sequence.finished]:
            step(made, some_of(dice, alive))
        for s in batch:
            assert s.ids == truth(tuple(s.ids[: s.prompt]))[: len(s.ids)]


@pytest.mark.parametrize("draft", [None, *DRAFTS], ids=["plain", *NAMES])
def test_a_long_prompt_may_join_a_long_text(draft):
    """Its prefill pads the longer lane, which must not run past the slots."""
    model = small_model(context=1024)
    made = plan(model, draft=draft)
    early = Sequence([1, 2, 3], limit=300, context=1024)
    while len(early.tokens) < 250:
        step(made, [early])
    late = Sequence([i % VOCAB for i in range(500)], limit=9, context=1024)
    step(made, [early, late])
    alone = Sequence(late.ids[:500], limit=9, context=1024)
    list(run(plan(model), [alone]))
    assert late.tokens == alone.tokens[: len(late.tokens)]


# What a draft may get wrong beyond guessing wrong, and what it is told.
BROKEN = {
    "too few trees": (lambda trees: trees[1:], "proposed 1 trees for 2 sequences"),
    "too many trees": (lambda trees: [*trees, trees[0]], "proposed 3 trees for 2 sequences"),
    "no list": (lambda trees: None, "proposed NoneType for 2 sequences"),
    "no tree": (lambda trees: [None, trees[1]], "a NoneType instead of a tree"),
    "a token past the vocabulary": (lambda trees: planting(trees, VOCAB), "token 32, which is outside the vocabulary of 32"),
    "a token below it": (lambda trees: planting(trees, -1), "token -1, which is outside"),
    "half a token": (lambda trees: planting(trees, 1.5), "no whole numbers"),
    "a word": (lambda trees: planting(trees, "the"), "no whole numbers"),
    "another root": (lambda trees: [Tree.root((t.tokens[0] + 1) % VOCAB) for t in trees], "does not begin with the last token"),
    "nothing": (lambda trees: [Tree([], []), trees[1]], "does not begin with the last token"),
    "the other's tree": (lambda trees: trees[::-1], "does not begin with the last token"),
    "a child first": (lambda trees: [Tree([t.tokens[0], 1, 2], [-1, 2, 0]) for t in trees], "parents do not precede"),
    "its own parent": (lambda trees: [Tree([t.tokens[0], 1], [-1, 1]) for t in trees], "parents do not precede"),
    "a second root": (lambda trees: [Tree([t.tokens[0], 1], [-1, -1]) for t in trees], "parents do not precede"),
    "a root with a parent": (lambda trees: [Tree([t.tokens[0], 1], [0, 0]) for t in trees], "parents do not precede"),
    "too few parents": (lambda trees: [Tree([t.tokens[0], 1], [-1]) for t in trees], "parents do not precede"),
    "another kind": (lambda trees: [Tree.root(t.tokens[0], "iid") for t in trees], "kind 'iid', while its card says det"),
}


def planting(trees: list[Tree], token) -> list[Tree]:
    trees[1].add(token, 0)
    return trees


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_tree_is_told_with_the_name_of_the_method(planted, name):
    spoil, said = BROKEN[name]
    made = planted(lambda s, room: Tree.root(s.ids[-1]), small_model())
    propose = made.draft.propose
    made.draft.propose = lambda sequences, room: spoil(propose(sequences, room))
    batch = [Sequence([1, 2], limit=5, context=CONTEXT), Sequence([3], limit=5, context=CONTEXT)]
    with pytest.raises(LitheError, match=r"planted_det is broken.*" + said):
        step(made, batch)
    assert not batch[0].tokens and not batch[1].tokens


def test_numbers_of_other_libraries_become_plain_ones(planted):
    import numpy as np

    ids = truth((1,))
    made = planted(lambda s, room: Tree.chain(np.int64(s.ids[-1]), torch.tensor(ids[len(s.ids) :])[:3]), small_model())
    sequence = Sequence([1], limit=9, context=CONTEXT)
    list(run(made, [sequence]))
    assert sequence.tokens == ids[1:10] and all(type(token) is int for token in sequence.ids)


def test_children_without_the_law_they_claim_are_told(planted, warm):
    def grow(sequence, room):
        tree = Tree.root(sequence.ids[-1], "chain")
        tree.add(3, 0)
        return tree

    sampled = Sequence([1], limit=5, context=CONTEXT, law=warm)
    with pytest.raises(LitheError, match="planted_chain cannot go on: children were drafted without a law"):
        list(run(planted(grow, small_model(), "chain"), [sampled]))
    greedy = Sequence([1], limit=5, context=CONTEXT)
    list(run(planted(grow, small_model(), "chain"), [greedy]))
    assert greedy.tokens == truth((1,))[1:6]


@pytest.mark.parametrize("walk", [Walk((2,), 1), Walk((1, 1), 1), Walk((5,), 1), Walk((), VOCAB), Walk((), -1)])
def test_a_rule_that_leaves_the_tree_is_told(planted, walk):
    made = planted(lambda s, room: Tree([s.ids[-1], 1, 2], [-1, 0, 1]), small_model())
    made.greedy = type("Rule", (), {"walk": lambda self, *_: walk})()
    with pytest.raises(LitheError, match="leaves its tree or the vocabulary"):
        step(made, [Sequence([1], limit=5, context=CONTEXT)])


def test_a_model_that_says_nothing_is_told(warm):
    model = small_model(seed=5)
    weight = model.norm.weight
    before = weight.detach().clone()
    try:
        weight.data.fill_(float("nan"))
        for law in (Law.of(), warm):
            with pytest.raises(LitheError, match=r"plain cannot go on: .*not numbers"):
                step(plan(model), [Sequence([1], limit=5, context=CONTEXT, law=law)])
    finally:
        weight.data.copy_(before)


def test_needs_are_compared_before_anything_runs(planted, monkeypatch, tmp_path):
    from lithe.model.cache import PlainCache

    (tmp_path / "needy.py").write_text(HEAD.format(what="Needy").replace('("det",)', '("det",), needs=("tree", "gather")'))
    monkeypatch.setattr(PlainCache, "can", PlainCache.can - {"tree"})
    with pytest.raises(UnsupportedError, match="needy needs tree, which this model and cache do not offer"):
        plan(small_model(), draft=str(tmp_path / "needy.py"))


def test_a_method_without_its_verbs_is_refused(tmp_path):
    (tmp_path / "mute.py").write_text(HEAD.format(what="Mute").replace("def propose", "def suggest"))
    with pytest.raises(UsageError, match=r"mute\.py: its Method has no propose"):
        plan(small_model(), draft=str(tmp_path / "mute.py"))


def drawn(kind: str, cheat: bool = False):
    """A draft of vocabulary 5 that draws its children as the kind says, from a law unlike the target's; or cheats."""

    def law(ids: list[int], depth: int) -> torch.Tensor:
        return torch.tensor([0.4, 0.1, 0.0, 0.3, 0.2], dtype=torch.float64).roll(sum(ids) + depth)

    def grow(sequence, room):
        tree = Tree.root(sequence.ids[-1], kind)
        front = [0]
        for depth in range(2):  # often deeper than there is room for
            grown = []
            for node in front:
                q_V = tree.laws[node] = law(sequence.ids, depth)
                for _ in range(1 if kind == "chain" else 3):
                    token = int(q_V.argmax()) if cheat else sequence.dice.draw(q_V)
                    grown.append(tree.add(token, node))
                    q_V = without(q_V, token) if kind == "wor" else q_V
            front = grown
        return tree

    return grow


@cache
def scores(ids: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return small_model(vocab=5, context=16, scale=1.0)(torch.tensor([ids])).logits[0, -1]


def chosen(sequence, room):
    """Guesses that know the answer's rank, worst first, with twins: chosen, so it may be anything."""
    logits_V = scores(tuple(sequence.ids))
    tree = Tree.root(sequence.ids[-1])
    for token in [*logits_V.argsort().tolist(), int(logits_V.argmin())][: 2 + sequence.ids[-1] % 4]:
        child = tree.add(token, 0)
        tree.add(int(logits_V.argmax()), child)
    return tree


def excess(made, law, samples: int = 2000) -> float:
    """Chi-squared of two sampled tokens against the target's joint law, at 24 degrees of freedom."""
    prompt = [1, 2, 3, 1, 2, 4, 1, 2]
    counts_VV = torch.zeros(5, 5, dtype=torch.float64)
    for start in range(0, samples, 500):
        batch = [Sequence(prompt, limit=2, context=16, law=law, seed=start + i) for i in range(500)]
        for _ in run(made, batch):
            pass
        for sequence in batch:
            counts_VV[tuple(sequence.tokens)] += 1
    return chi_squared(counts_VV, joint_law(made.model, prompt, law))


@pytest.mark.parametrize(("kind", "grow", "accept"), [
    ("det", chosen, None), ("chain", drawn("chain"), None), ("iid", drawn("iid"), None), ("wor", drawn("wor"), None),
    ("wor", drawn("wor"), RULE)])
def test_no_draft_changes_the_law_of_sampled_text(planted, warm, kind, grow, accept):
    assert excess(planted(grow, small_model(vocab=5, context=16, scale=1.0), kind, accept), warm) < 77


@pytest.mark.parametrize("kind", ["chain", "iid"])
def test_a_draft_that_lies_about_its_law_would_be_caught(planted, warm, kind):
    """The negative control: tokens chosen, a law claimed. So the test above can fail."""
    assert excess(planted(drawn(kind, cheat=True), small_model(vocab=5, context=16, scale=1.0), kind), warm, 1000) > 300
