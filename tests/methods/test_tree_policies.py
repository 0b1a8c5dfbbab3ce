"""Tree policies: their shapes by hand, their laws by enumeration where shapes depend on draws, and what bends them."""

from functools import partial

import numpy as np
import pytest
import torch

from lithe import registry
from lithe.contracts.accept import EXACT, everywhere, law_error, pair, random_pair, texts_of
from lithe.contracts.branches import outcomes
from lithe.contracts.small import small_folder, small_model
from lithe.contracts.tree import grown
from lithe.decode.grow import Likeliest, distinct
from lithe.decode.loop import Round
from lithe.decode.plan import plan
from lithe.errors import UnsupportedError, UsageError
from lithe.ops import accept
from lithe.ops.accept import Dice
from lithe.ops.tree import Tree, Walk

THREE = pair((0.2, 0.5, 0.3), (0.6, 0.3, 0.1))


def policy(name, **knobs):
    entry = registry.find(name, "tree")
    return entry.module.Method(entry.knobs(**knobs))


def wor(tree, scores_NV, dice):
    return accept.walk(tree, scores_NV, accept.without_replacement, dice)


def off(grow, target_V, draft_V, depth):
    return law_error(wor, everywhere(target_V), everywhere(draft_V), grow, depth)


# ---- DySpec


def test_the_heap_fills_the_best_place_first():
    """Values by hand for D = (.6, .3, .1) everywhere: .6 below the first node, .4 beside it, .36 below that, .3, .24, ..."""
    law_V = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    tree = grown(policy("dyspec", nodes=6), "wor", lambda text: law_V, Likeliest(), depth=9)
    assert texts_of(tree)[1:] == [(0,), (0, 0), (1,), (0, 0, 0), (1, 0), (0, 1)]


def test_the_threshold_form_fills_the_same_places_in_a_pass_a_level():
    law_V = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    heap = grown(policy("dyspec", nodes=9), "wor", lambda text: law_V, Likeliest(), depth=9)
    levels = grown(policy("dyspec", nodes=64, threshold=0.2), "wor", lambda text: law_V, Likeliest(), depth=9)
    assert set(texts_of(levels)) <= set(texts_of(heap)) and len(levels) == 8  # 1, .6, .4, .36, .3, .24 and .216
    assert max(levels.depths) == 4


@pytest.mark.parametrize("knobs", [{"nodes": 3}, {"nodes": 64, "threshold": 0.35}], ids=["heap", "threshold"])
def test_trees_whose_shape_follows_the_draws_keep_the_law(knobs):
    for target_V, draft_V in (THREE, pair((0, 0.6, 0.4), (0.65, 0.35, 0)), random_pair(1)):
        assert off(partial(grown, policy("dyspec", **knobs), "wor", depth=2), target_V, draft_V, 2) < EXACT


def test_a_node_dropped_for_its_token_bends_the_law():
    """The pruning that looks harmless: what was drawn although unlikely is not worth a row."""

    def pruned(draft, dice):
        tree = grown(policy("dyspec", nodes=2), "wor", draft, dice, depth=1)
        kept = [0, *(i for i in range(1, len(tree)) if draft(())[tree.tokens[i]] >= 0.2)]
        return Tree([tree.tokens[i] for i in kept], [-1] + [0] * (len(kept) - 1), "wor", tree.laws)

    assert off(pruned, *THREE, 1) > 0.1
    assert off(partial(grown, policy("dyspec", nodes=2), "wor", depth=1), *THREE, 1) < EXACT


# ---- Sequoia


def value(rate, shape, path=()):
    """Expected tokens of a tree, its root included."""
    return 1 + sum(rate[rank] * value(rate, shape, (*path, rank)) for rank in range(shape.get(path, 0)))


def size(shape):
    return sum(shape.values())


@pytest.mark.parametrize("nodes", [1, 2, 5, 12, 31])
def test_the_program_finds_what_greed_finds_where_greed_is_right(nodes):
    best = registry.find("sequoia").module.best
    rate = np.array([0.55, 0.2, 0.1, 0.05, 0.02])
    open_, total = [(0.55, 0, 1.0)], 1.0  # for rates that fall with rank, the likeliest paths are the best tree
    for _ in range(nodes):
        open_.sort()
        chance, rank, above = open_.pop()
        total += chance
        open_.append((chance * rate[0], 0, chance))
        if rank + 1 < len(rate):
            open_.append((above * rate[rank + 1], rank + 1, above))
    shape = best(rate, nodes, 40)
    assert size(shape) == nodes and value(rate, shape) == pytest.approx(total, abs=1e-9)


def test_the_program_looks_past_a_poor_rank_and_keeps_to_its_depth():
    best = registry.find("sequoia").module.best
    rate = np.array([0.3, 0.01, 0.6])
    assert best(rate, 3, 9) == {(): 3}  # greed would go down the first child
    assert max(map(len, best(np.array([0.9, 0.05]), 12, 3))) == 2


def test_rates_are_learnt_from_the_rounds():
    made = policy("sequoia", nodes=4, depth=3)
    assert made.shape != {(): 4}
    tree = Tree([5, 1, 2, 3, 4], [-1, 0, 0, 0, 0], "wor")
    for _ in range(200):  # the fourth is always the one
        made.observe([Round(None, tree, Walk((4,), 9), None, {}, len(tree))])
    assert made.shape == {(): 4}
    assert made.right[3] / made.tested[3] > 0.95 > 0.05 > made.right[0] / made.tested[0]


# ---- RSD


def test_gumbel_noise_draws_without_replacement():
    """The order of log q + noise is that of draws one after another: 60 orders of three among five, counted."""
    law_V = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    dice, counts = Dice(torch.Generator().manual_seed(0)), torch.zeros(5, 5, 5, dtype=torch.float64)
    noise = dice.gumbel(5 * 20000).view(20000, 5)
    np.add.at(counts.numpy(), tuple((law_V.log() + noise).topk(3).indices.T.numpy()), 1)
    ordered = outcomes(lambda dice: tuple(grow_once(law_V, dice)))
    wanted = torch.zeros(5, 5, 5, dtype=torch.float64)
    for order, chance in ordered.items():
        wanted[order] = chance * 20000
    assert ((counts - wanted) ** 2 / wanted.clamp(min=1e-9)).sum() < 59 + 6 * 118**0.5


def grow_once(law_V, dice):
    tree = Tree.root(0, "wor")
    growth = distinct(tree, dice, lambda path: 3, 1)
    next(growth)
    with pytest.raises(StopIteration):
        growth.send([law_V])
    return tree.tokens[1:]


def test_the_largest_key_is_the_parents_and_no_child_passes_it():
    below = registry.find("rsd_s").module.below
    noisy_V = torch.tensor([-1.0, -3.0, 0.5, float("-inf")], dtype=torch.float64)
    for key in (-20.0, 0.0, 3.0):
        keys_V = below(key, noisy_V)
        assert keys_V.max().item() == pytest.approx(key, abs=1e-9) and int(keys_V.argmax()) == 2
        assert keys_V.argsort().tolist() == noisy_V.argsort().tolist() and keys_V[3] == float("-inf")


def race(draft, dice, *, width, depth):
    """What a stochastic beam draws, without noise: whole sequences arrive one after another, none twice.

    The time to the next new child of a node is exponential, at the rate of the chance that is left there; so the next arrival
    falls to a node in proportion to it, whatever came before. A level is closed once it has `width` nodes.
    """
    tree, chance, urns, filled = Tree.root(0, "wor"), {0: 1.0}, {}, [0] * (depth + 1)
    level = lambda node: len(tree.path(node))

    def arrive(node):
        while level(node) < depth and filled[level(node) + 1] < width:
            text = tuple(tree.tokens[i] for i in tree.path(node))
            tree.laws.setdefault(node, draft(text))
            urn_V = urns.setdefault(node, draft(text).clone())
            token = dice.draw(urn_V)
            child = tree.add(token, node)
            chance[child] = chance[node] * urn_V[token].item()
            urn_V[token] = 0
            filled[level(child)] += 1
            node = child

    arrive(0)
    while places := [n for n in urns if urns[n].sum() > 0 and filled[level(n) + 1] < width]:
        rate = torch.tensor([chance[n] * urns[n].sum().item() for n in places], dtype=torch.float64)
        arrive(places[dice.draw(rate)])
    return tree


def family(tree):
    """A tree as its siblings in order, node by node, however the nodes are numbered."""
    texts = texts_of(tree)
    below = ((texts[n], tuple(tree.tokens[child] for child in tree.children(n))) for n in range(len(tree)))
    return tuple(sorted(each for each in below if each[1]))


@pytest.mark.parametrize(("target_V", "draft_V"), [THREE, pair((0.9, 0.1), (0.3, 0.7)), pair((0, 0.6, 0.4), (0.65, 0.35, 0))])
def test_the_beams_law_is_exact(target_V, draft_V):
    for width in (1, 2):
        assert off(partial(race, width=width, depth=2), target_V, draft_V, 2) < EXACT


def test_the_beam_draws_what_the_race_draws():
    """Trees of width 2 and depth 2, counted against the race's exact law."""
    draft, count, found = everywhere(THREE[1]), 2500, {}
    made, dice = policy("rsd_s", width=2, depth=2), Dice(torch.Generator().manual_seed(1))
    for _ in range(count):
        tree = family(grown(made, "wor", draft, dice, depth=2))
        found[tree] = found.get(tree, 0) + 1
    exact = outcomes(lambda dice: family(race(draft, dice, width=2, depth=2)))
    assert set(found) <= set(exact)
    excess = sum((found.get(tree, 0) - count * chance) ** 2 / (count * chance) for tree, chance in exact.items())
    freedom = len(exact) - 1
    assert excess < freedom + 6 * (2 * freedom) ** 0.5


def test_a_beam_of_one_is_a_chain_and_a_greedy_beam_the_likeliest_paths():
    law_V = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    chain = grown(policy("rsd_s", width=1, depth=4), "wor", lambda text: law_V, Dice(torch.Generator()), depth=9)
    assert chain.parents == [-1, 0, 1, 2, 3]
    beam = grown(policy("rsd_s", width=2, depth=3), "wor", lambda text: law_V, Likeliest(), depth=9, greedy=True)
    assert texts_of(beam)[1:] == [(0,), (1,), (0, 0), (0, 1), (0, 0, 0), (0, 0, 1)]


# ---- how slots are filled


@pytest.mark.parametrize(("spec", "problem", "says"), [
    ("dyspec + prompt_lookup", UnsupportedError, "cannot shape the trees of prompt_lookup"),
    ("dyspec + draft_model:tokens=3", UsageError, "tokens has no effect"),
    ("dyspec + rejection", UnsupportedError, "not exact for wor trees"),
    ("dyspec + sequoia", UsageError, "slot tree is filled twice"),
    ("dyspec + temperature", UsageError, "has no slot in a plan"),
    ("rsd_c:branches=2-x", UsageError, "joined by hyphens"),
    ("specinfer:branches=64-64", UsageError, "makes 4160 nodes"),
])  # fmt: skip
def test_what_is_not_legal_is_refused(spec, problem, says):
    with pytest.raises(problem, match=says):
        plan(small_model(), draft=spec.replace("draft_model:", f"draft_model:model={small_folder()},"))


def test_a_plan_says_what_fills_it():
    made = plan(small_model(), tree="rsd_c:branches=3-1", draft=f"draft_model:model={small_folder()}")
    assert made.name == f"rsd_c:branches=3-1 + draft_model:model={small_folder()}" and made.kinds == ("wor",)
    assert made.knobs["branches"] == "3-1" and made.knobs["draft.model"] == str(small_folder())
    lossy = plan(small_model(), draft=f"rsd_c + draft_model:model={small_folder()} + typical_acceptance")
    assert lossy.promises == ("same_tokens",) and not registry.find("typical_acceptance").card.lossless
