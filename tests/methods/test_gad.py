"""Generalized aggressive decoding: blocks filled at once, and what a lesson shows of them."""

import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.sampling.sequence import Sequence
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

ONE, MIXED = (1,), (1, 1, 1, 2)
SPEC = "gad:layers=1,tokens=4,rate=0.01,anneal=80,points=4"
method = registry.find("gad").module


def filler(**knobs):
    return method.Filler(method.Knobs(**knobs), small_model()).double()


def test_it_learns_to_fill_a_block_at_once():
    """Over any block it corrects itself, as Jacobi does, and over one whose places have changed order (the control)."""
    folder, rates = fitted(SPEC, *ONE, steps=150)
    assert len(rates) == 4 and min(row[0] for row in rates) > 0.8
    made = drafting(f"gad:heads={folder},tokens=4", *ONE)
    filled = tokens_per_pass(made, 0.0)
    assert filled > 3 and filled > tokens_per_pass(drafting("jacobi:tokens=4", *ONE), 0.0) + 1
    fill = made.draft._fill
    made.draft._fill = lambda sequences, many: [tokens[1:] + tokens[:1] for tokens in fill(sequences, many)]
    assert tokens_per_pass(made, 0.0) < 1.5


def test_a_block_of_a_run_is_that_of_the_lesson():
    """Whatever was committed round by round, and beside whom: logits as of one pass over the text with the block behind it."""
    model, many = small_model(), 5
    made = plan(model, draft=f"gad:heads=fresh,tokens={many}")
    net, drafted = made.draft.net.eval(), []
    propose = made.draft.propose


    def watched(sequences, room):
        trees = propose(sequences, room)
        drafted.extend((list(s.ids), tree) for s, tree in zip(sequences, trees, strict=True))
        return trees

    made.draft.propose = watched
    list(run(made, [Sequence([1, 2, 3, 4], limit=12, context=64), Sequence([9, 8], limit=9, context=64)]))
    checked = 0
    for ids, tree in drafted:
        k = len(tree) - 1
        seen = torch.ones(len(ids) + k, len(ids) + k, dtype=torch.bool).tril()
        seen[len(ids) :, len(ids) :] = True
        rows = torch.cat((net.rows(torch.tensor(ids)), net.mask.expand(k, -1)))[None]
        if k:
            said = net.logits(net.body(embeds=rows, mask=seen, logits="none").hidden[0, len(ids) :])
            assert tree.tokens[1:] == said.argmax(-1).tolist()
            checked += 1
    assert checked > 12


def test_masked_places_see_each_other_both_ways_and_no_other_block():
    net, ids_BT = filler(tokens=3, points=2).eval(), torch.arange(12)[None]
    text, true_BG, pos_BG = net.blocks(ids_BT)
    assert pos_BG.tolist() == [[1, 2, 3, 9, 10, 11]] and torch.equal(true_BG, pos_BG)
    rows = net.mask.detach().expand(1, 6, -1).clone()
    before = net.fill(text, pos_BG, rows)
    rows[0, 2] += 1.0  # the last place of the first block
    moved = (net.fill(text, pos_BG, rows) != before).any(-1)[0].tolist()
    assert moved == [True, True, True, False, False, False]


def test_more_is_shown_of_what_is_guessed_wrong_and_less_in_the_end():
    net = filler(tokens=4, points=60, glance=0.8, least=0.2, anneal=10)
    ids_BT = torch.randint(32, (8, 64), generator=torch.Generator().manual_seed(0))
    text, true_BG, pos_BG = net.blocks(ids_BT)
    torch.manual_seed(0)
    shares = []
    for steps in (0, 10, 1000):
        net.steps.fill_(steps)
        shares.append(float(net.shown(text, pos_BG, true_BG).float().mean()))  # untrained, it is nearly always wrong
    assert abs(shares[0] - 0.8) < 0.05 and abs(shares[1] - 0.2) < 0.05 and abs(shares[2] - 0.2) < 0.05
    right_BG = net.fill(text, pos_BG, net.mask.expand(*pos_BG.shape, -1)).argmax(-1)
    assert not net.shown(text, pos_BG, right_BG).any()


def test_only_what_stays_masked_is_learned():
    net = filler(tokens=4, points=6)
    net.shown = lambda text, pos, true: torch.ones_like(true, dtype=torch.bool).index_fill(1, torch.tensor([3]), False)
    ids_BT = torch.arange(64).remainder(32)[None].repeat(2, 1)
    total, count = net.loss({"ids_BT": ids_BT})
    assert count == 2 and torch.isfinite(total) and int(net.steps) == 1
    total.backward()
    assert net.mask.grad.abs().sum() > 0 and net.body.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


def test_strict_keeps_the_text_and_relaxing_it_takes_longer_pieces():
    """The paper's two verifiers over one drafter: the wider the second, the more tokens a pass, and the less plain's text."""
    folder, _ = fitted(SPEC, *MIXED, steps=120)
    found, plain = [], _texts(plan(bigrams(*MIXED)))
    for rule in ("", " + aggressive:beta=2,tau=1", " + accept/aggressive:beta=32,tau=99"):
        made = plan(bigrams(*MIXED), draft=f"gad:heads={folder},tokens=4{rule.replace('+ aggressive', '+ accept/aggressive')}")
        found.append((tokens_per_pass(made, 0.0), sum(a == b for a, b in zip(_texts(made), plain, strict=True))))
    (strict, same), *relaxed = found
    assert same == len(plain) and relaxed[-1][0] > 4.5 > strict
    assert strict <= relaxed[0][0] <= relaxed[1][0] and relaxed[1][1] < same


def _texts(made):
    batch = [Sequence([i, 2 * i], limit=24, context=96) for i in range(8)]
    list(run(made, batch))
    return [s.tokens for s in batch]
