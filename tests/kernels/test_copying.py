"""Drafts that copy: the compiled ones guess what their slow twins guess, to the last node, over whole texts."""

import gc
import random
import subprocess
from pathlib import Path

import pytest
import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.loop import Round
from lithe.decode.told import Told
from lithe.kernels import build, copying, draft, library
from lithe.ops.suffix import Suffixes
from lithe.ops.tree import Walk
from lithe.sampling.sequence import Sequence
from tests.kernels.variants import compiled

VOCAB = 32


@pytest.fixture
def without(monkeypatch):
    """Makes what it is given without kernels."""

    def make(build):
        with monkeypatch.context() as patch:
            patch.setattr(library, "load", lambda: None)
            caches = copying._functions, draft._functions
            for each in caches:
                each.cache_clear()
            made = build()
            for each in caches:
                each.cache_clear()
        return made

    return make


def texts(dice: random.Random, count: int, length: int) -> list[list[int]]:
    """Random texts that repeat pieces of themselves and of each other."""
    found: list[list[int]] = []
    for _ in range(count):
        ids = [dice.randrange(1, VOCAB) for _ in range(6)]
        while len(ids) < length:
            source = dice.choice([*found, ids])
            at = dice.randrange(len(source))
            ids += source[at : at + dice.randrange(1, 9)] + [dice.randrange(1, VOCAB)] * dice.randrange(2)
        found.append(ids[:length])
    return found


def sequences(dice, count=8, length=60):
    for ids in texts(dice, count, length):
        yield Sequence(ids[:5], limit=length - 5, context=999), ids


def drafted(method, dice: random.Random, learns: bool = True) -> list:
    """All trees along some texts, two at a time, each followed by random steps of one to four tokens."""
    trees, logits = [], torch.Generator().manual_seed(0)
    pairs = list(sequences(dice))
    for pair in zip(pairs[::2], pairs[1::2], strict=True):
        method.start([s for s, _ in pair])
        while live := [(s, ids) for s, ids in pair if not s.finished]:
            most = [min(dice.randrange(9), s.left - 1) for s, _ in live]
            found = method.propose([s for s, _ in live], most)
            trees += [(tree.tokens, tree.parents, tree.sources) for tree in found]
            rounds = []
            for (s, ids), tree in zip(live, found, strict=True):
                rest, path, node = ids[len(s.ids) :], [], 0
                while len(path) + 1 < len(rest) and (below := tree.child(node, rest[len(path)])) is not None:
                    path.append(node := below)
                scores_NV = torch.randn(len(tree), VOCAB, generator=logits, dtype=torch.float32 if learns else torch.float64)
                for token in rest[: len(path) + 1]:
                    s.push(token)
                rounds.append(Round(s, tree, Walk(tuple(path), rest[len(path)]), Told(scores_NV), {}, len(tree)))
            method.observe(rounds)
    return trees


SPECS = (
    *("suffix", "suffix:alpha=4,nodes=5", "suffix:alpha=3,offset=1,tree=false", "suffix:floor=0,alpha=2,depth=3"),
    *("suffix:nodes=0", "suffix:outputs=false,alpha=2", "suffix:limit=50"),
    *("prompt_lookup", "prompt_lookup:last=true,tokens=3", "prompt_lookup:ngram=1"),
    *("token_recycling", "token_recycling:nodes=0", "token_recycling:nodes=9,update=accepted,k=3"),
    *("blend", "blend:learn=false,nodes=6", "blend:drafts=suffix+token_recycling,row=0.3"),
)


@compiled
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("learns", [True, False])
def test_the_compiled_drafts_are_their_slow_twins(spec, learns, without):
    """Scores in float64 are noted by Python."""
    build = lambda: (read := registry.parse(spec, "draft")).entry.module.Method(read.knobs, small_model())
    fast, slow = build(), without(build)
    assert fast.compiled is not None and slow.compiled is None
    found = drafted(fast, random.Random(1), learns)
    assert found == drafted(slow, random.Random(1), learns)
    assert sum(len(tokens) > 1 for tokens, *_ in found) > len(found) / 10


@compiled
def test_a_large_index_is_the_slow_one():
    """Tables that grow many times, and texts whose states are split."""
    settings = dict(depth=64, alpha=2.0, offset=0.0, floor=0.05, tree=True, outputs=True, limit=10**6, most=16, costs=[])
    fast, slow, dice = copying.suffixes(**settings), Suffixes(**settings), random.Random(2)
    for number, ids in enumerate(texts(dice, 6, 700)):
        for end in (1, 2, 650, 651, 700):
            one, other = (each.propose(number, ids[:end], 8) for each in (fast, slow))
            assert (one.tokens, one.parents, one.sources) == (other.tokens, other.parents, other.sources)
        for each in (fast, slow):
            each.keep(ids)
            each.forget(number)
    assert fast.states == slow.states > 4000


@compiled
def test_a_text_that_was_dropped_is_read_anew_and_many_may_be_under_way():
    settings = dict(depth=9, alpha=1.0, offset=0.0, floor=0.0, tree=True, outputs=False, limit=9, most=4, costs=[])
    made = copying.suffixes(**settings)
    ids = [1, 2, 3, 1, 2]
    for number in range(50):
        assert made.propose(number, ids, 4).tokens == [2, 3, 1]
    made.forget(7)
    assert made.propose(7, ids, 4).tokens == [2, 3, 1] == made.propose(7, ids, 4).tokens
    made.forget()
    assert made.propose(7, [9], 4).tokens == [9]
    del made
    gc.collect()


@compiled
def test_tokens_outside_the_table_are_left_alone():
    method = registry.find("token_recycling").module
    made = method.Method(method.Knobs(), small_model())
    assert made.propose([Sequence([1, 10**6], limit=9, context=64)], [4])[0].tokens == [10**6]
    made.compiled.learn([1, 10**6], (1,), 3, torch.zeros(2, VOCAB))
    assert not made.table.any()


@compiled
def test_sanitizers_find_nothing(tmp_path):
    """Random texts, drafted for, learnt of and dropped: every access within what was allocated, nothing left behind."""
    program, code = tmp_path / "selftest", Path(__file__).with_name("selftest_copy.c")
    flags = [flag for flag in build.COMMON if flag not in ("-shared", "-O3")]
    made = subprocess.run([build.compiler(), *flags, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
                           str(build.SOURCES / "copy.c"), str(build.SOURCES / "draft.c"), str(code), "-o", str(program)],
                          capture_output=True, text=True)
    if "cannot find" in made.stderr or "unsupported option" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert made.returncode == 0, made.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
