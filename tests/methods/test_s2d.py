"""S2D: exits inside a draft, rows that wait below them, and a model that learned to be left early."""

import dataclasses

import numpy as np
import pytest
import torch

from lithe import registry
from lithe.contracts import draft as contract
from lithe.contracts.small import small_folder, small_model
from lithe.decode import nested
from lithe.decode.drafter import Recipe, following, make
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.errors import UsageError
from lithe.model.cache import PlainCache
from lithe.model.checkpoint import save
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.methods.bigrams import text

DRAFT = small_folder(seed=7, layers=3)
SPEC = f"s2d:model={DRAFT}"
LAWS = [Law(), Law.of(temperature=0.9)]


def said(spec, law, limit=7):
    """The tokens of every tree, and the text."""
    made, met = plan(small_model(), draft=spec), []
    propose = made.draft.propose

    def noting(*given):
        trees = propose(*given)
        met.append([tree.tokens for tree in trees])
        return trees

    made.draft.propose = noting
    batch = [Sequence(p, limit=limit, context=64, law=law, seed=i) for i, p in enumerate(contract.PROMPTS[1:4])]
    list(run(made, batch))
    return met, [s.tokens for s in batch]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The draft's first layer under its norm and output matrix, as a model of its own."""
    whole, folder = small_model(seed=7, layers=3), tmp_path_factory.mktemp("first") / "model"
    made = Decoder(whole.config.replace(layers=1)).double()
    made.load_state_dict({name: w for name, w in whole.state_dict().items() if ".1." not in name and ".2." not in name})
    save(made, folder, dtype=torch.float64)
    return folder


@pytest.mark.parametrize("law", LAWS, ids=["greedy", "sampled"])
def test_never_to_leave_is_the_whole_draft_and_always_to_leave_its_first_layers(law, first):
    """Chains and trees: which tokens are drafted, and so how many are verified and what is drawn, is the same."""
    for policy in ("{}", "expand_rerank:nodes=9,depth=3,width=3 + {}"):
        never = said(policy.format(f"{SPEC},sure=1"), law)
        assert never == said(policy.format(f"draft_model:model={DRAFT}"), law)
        always = said(policy.format(f"{SPEC},sure=0"), law)
        assert always == said(policy.format(f"draft_model:model={first}"), law) != never
        assert said(policy.format(f"{SPEC},sure=0.35"), law)[0] not in (never[0], always[0])


@pytest.mark.parametrize("law", LAWS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("policy", ["", "expand_rerank:nodes=9,depth=3,width=3 + "])
def test_what_waits_is_made_up_for_in_order(law, policy):
    """After each round a part's cache is that of a fresh pass as far as it reaches; once all went up, it is so to the end."""
    made = plan(small_model(), draft=f"{policy}{SPEC},sure=0.35/0.5")
    s2d = getattr(made.draft, "draft", made.draft)
    batch = [Sequence(p, limit=40, context=64, law=law, seed=i) for i, p in enumerate([[1], [3, 4, 5, 3, 4]])]
    held, behind = s2d.nested, 0
    with torch.inference_mode():
        for _ in range(8):
            step(made, batch)
            held.sync(batch)
            known = held.lanes.cache.lengths
            for part in held.upper:
                assert [n + len(rows) for n, rows in zip(part.lengths, part.waiting, strict=True)] == known
                behind, known = behind + sum(map(len, part.waiting)), part.lengths
            fresh(held, batch)
        assert behind and min(s2d.left)  # rows did wait, and every exit was taken
        for exit in (1, 2):
            held.climb(exit, (0, 1))
        assert held.upper[1].lengths == held.lanes.cache.lengths
        fresh(held, batch)


def fresh(held, batch):
    """What each part's layers hold is what reading the text anew would write there."""
    model, cache = held.model, held.lanes.cache
    for b, sequence in enumerate(batch):
        other = PlainCache.like(model)
        model(torch.tensor([sequence.ids]), cache=other, logits="none")
        for layers, lengths in [(held.first, cache.lengths), *((part.layers, part.lengths) for part in held.upper)]:
            for layer in layers:
                mine, theirs = (store[layer][at, :, : lengths[b]] for store, at in ((cache.k, b), (other.k, 0)))
                torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_no_layer_reads_a_row_twice_and_upper_ones_read_fewer(monkeypatch):
    made = plan(small_model(), draft=f"{SPEC},sure=0.35,tokens=4")
    rows = [0, 0, 0]
    forward = Decoder.forward

    def counted(self, *given, **named):
        if self is made.draft.model:
            real = named["embeds"].shape[1] if "embeds" in named else given[0].shape[1] if given else named["ids_BT"].shape[1]
            for layer in named["layers"]:
                rows[layer] += real
        return forward(self, *given, **named)

    monkeypatch.setattr(Decoder, "forward", counted)
    sequence = Sequence([1, 2, 3], limit=40, context=64)
    drafted = sum(s.nodes - 1 for s in run(made, [sequence]))
    assert rows[0] >= rows[1] >= rows[2] > 0 and rows[2] < rows[0]
    # the prompt, each root and each drafted token but a chain's last, which nobody reads unless it was accepted
    assert rows[0] <= 3 + len(sequence.tokens) + drafted and sum(made.draft.left) == drafted


def test_the_law_it_tells_is_that_of_the_exit_it_drew_from(monkeypatch):
    """By counting. Control: to tell the whole draft's law of a token that the first exit drew is found out."""
    entry, target = registry.find("s2d"), small_model(vocab=5, context=16, scale=1.0)
    spec = f"s2d:model={small_folder(5, 16, 5, 2.0, 3)},sure=0"
    monkeypatch.setattr(contract, "suited", lambda entry, target: spec)
    contract.check_same_law(entry, 500)
    propose = entry.module.Method.propose
    whole = registry.parse(spec.replace("sure=0", "sure=1"))
    whole = entry.module.Method(whole.knobs, target)

    def wrong(self, sequences, room):
        trees = propose(self, sequences, room)
        drawn = [list(range(len(tree) - 1)) for tree in trees]
        told = whole.laws(sequences, trees, drawn) if any(drawn) else drawn
        for tree, nodes, laws in zip(trees, drawn, told, strict=True):
            tree.laws = dict(zip(nodes, laws, strict=True))
        return trees

    monkeypatch.setattr(entry.module.Method, "propose", wrong)
    with pytest.raises(AssertionError, match="off the target's law"):
        contract.check_same_law(entry, 500)


def test_long_prompts_are_read_at_once_and_lanes_come_and_go():
    target, spec = small_model(context=256), f"s2d:model={small_folder(context=256, seed=7, layers=3)},sure=0.35"
    prompts = [list(range(32)) * 5, [1, 2], [3] * 90]
    dice = np.random.default_rng(0)
    prompts += [dice.integers(0, 32, 70).tolist()]

    def told(made):
        batch = [Sequence(p, limit=4 + 4 * i, context=256) for i, p in enumerate(prompts)]
        list(run(made, batch))
        return [s.tokens for s in batch]

    assert told(plan(target, draft=spec)) == told(plan(target))


def test_exits_and_thresholds_are_checked():
    assert [nested.exits("", n) for n in (1, 2, 3, 6, 12)] == [(1,), (1, 2), (1, 2, 3), (3, 4, 6), (6, 9, 12)]
    for wrong in ("exits=1/2", "exits=2/1/3", "exits=0/3", "exits=a/3", "sure=0.5/0.5/0", "sure=2", "sure=x"):
        with pytest.raises(UsageError, match=wrong.partition("=")[0]):
            plan(small_model(), draft=f"{SPEC},{wrong}")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A draft of three layers that learned to be left after each, and one that learned as long for its last alone."""
    target, folder = load(small_folder(), dtype=torch.float32, fast=False), tmp_path_factory.mktemp("sorted")
    recipe = dict(layers=3, width=16, pretrain=50, align=0, rows=16, length=31, rate=0.02)
    return [make(target, text(2), Recipe(exits=exits, **recipe), folder / f"with{exits[:1]}", quiet=True)
            for exits in ("1/2/3", "")]


def test_sorted_fine_tuning_makes_early_exits_of_use(learned):
    """On text kept apart; control: cut after its first or second layer, a draft that did not learn it is far worse."""
    batch = {"ids_BT": torch.from_numpy(text(2)[-620:]).view(20, 31)}
    with torch.no_grad():
        nats = [[float(following(model, batch, at=(n,))[0]) / 600 for n in (1, 2, 3)] for model in learned]
        mean = float(following(learned[0], batch, at=(1, 2, 3))[0]) / 600
    assert mean == pytest.approx(sum(nats[0]) / 3, rel=1e-5)
    assert nats[0][0] < nats[1][0] - 0.3 and nats[0][1] < nats[1][1]
    assert nats[0][0] < 1.5  # log 2 is all there is to know, log 32 nothing


def test_a_draft_may_be_the_first_layers_of_a_model(tmp_path):
    target = load(small_folder(), dtype=torch.float32, fast=False)
    recipe = Recipe(start=str(DRAFT), keep=2, exits="1/2", pretrain=0, align=0, rate=0.0)
    made, whole = make(target, text(2), recipe, tmp_path / "cut", quiet=True), load(DRAFT, dtype=torch.float32, fast=False)
    ids = torch.arange(9)[None]
    assert load(tmp_path / "cut").config.layers == 2
    tap = whole(ids, taps=(1,)).taps[1]
    torch.testing.assert_close(made(ids, logits="all").scores, whole.head(tap))
    for wrong in ({"keep": 4}, {"exits": "1/3"}, {"start": ""}):
        with pytest.raises(UsageError):
            make(target, text(2), dataclasses.replace(recipe, **wrong), tmp_path / "wrong", quiet=True)
