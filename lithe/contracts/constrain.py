"""Constraints: what they let through is what was asked for, however a matcher came there. Axes: N nodes, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from lithe.contracts.small import small_model
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import UsageError
from lithe.model.tokenizer import Tokenizer
from lithe.ops.tree import Tree
from lithe.registry import Entry
from lithe.sampling.constraint import Constraint, Matcher, Program
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence

MERGES = ("y e", "ye s", "n o", '{ "', '" :', '" }', "a b", "1 2", "r e", "d a", "t r", "tr u", "tru e")
CUT = float("-inf")


@cache
def small_tokenizer() -> Tokenizer:
    """Bytes and a few merges, the last token ending a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(merge.replace(" ", "") for merge in MERGES), "<end>"]
    pairs: Any = [tuple(merge.split()) for merge in MERGES]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    folder = Path(mkdtemp(prefix="lithe-"))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}', encoding="utf-8")
    return Tokenizer(folder)


def check_verbs(entry: Entry) -> None:
    """It takes its examples and tells bad texts, and a matcher is a function of the tokens it went over, forth and back."""
    tokenizer, method = small_tokenizer(), entry.module.Method(entry.knobs(), small_tokenizer())
    for text in entry.module.REFUSED:
        try:
            method.compile(text)
        except UsageError:
            continue
        raise AssertionError(f"{text!r} is taken, though nothing can come of it")
    for program, inside, outside in programs(entry):
        for text in inside:
            assert accepts(program, tokenizer.encode(text)), f"{text!r} is not let through"
        for text in outside:
            assert not accepts(program, tokenizer.encode(text)), f"{text!r} is let through"
        _check_moves(program)


def check_subset(entry: Entry) -> None:
    """Along a tree the logits that stay are the model's own, the others are cut, and a law is always left."""
    dice = torch.Generator().manual_seed(0)
    for program, inside, _ in programs(entry):
        for text in inside:
            way = small_tokenizer().encode(text)
            tree = Tree.trie(5, [way, [*way[:1], 7, 9], way[1:]])
            logits_NV = torch.randn(len(tree), 300, generator=dice, dtype=torch.float64)
            before_NV, constraint = logits_NV.clone(), Constraint(program, small_tokenizer().eos_ids)
            out_NV = constraint.mask([], tree, logits_NV)
            assert torch.equal(logits_NV, before_NV), "it changes its input in place"
            kept_NV = out_NV > CUT
            assert torch.equal(out_NV[kept_NV], logits_NV[kept_NV]), "a logit that is kept has changed"
            assert kept_NV.any(-1).all(), "a row loses every token"
            node = 0
            for token in way:
                assert kept_NV[node, token], f"{token} may follow, but is cut in {text!r}"
                node = tree.child(node, token) or 0
            assert kept_NV[node, list(small_tokenizer().eos_ids)].all(), f"{text!r} may not end"
            assert torch.equal(constraint.mask([], tree, logits_NV), out_NV), "asked again, it says something else"


def check_valid(entry: Entry) -> None:
    """Whatever a model would rather say, every text that ends is let through when it is read anew."""
    tokenizer = small_tokenizer()
    ends = 0
    for program, _, _ in programs(entry):
        for seed in range(4):
            model = small_model(vocab=tokenizer.vocab_size, context=64, seed=seed)
            law = Law.of(temperature=1.0) if seed % 2 else Law()
            sequence = Sequence([1, 2, 3], limit=40, context=64, law=law, seed=seed, eos=tokenizer.eos_ids, constraint=program)
            for _ in run(plan(model), [sequence]):
                pass
            if sequence.finished == "length":
                continue
            ends += 1
            text = tokenizer.decode(sequence.tokens)
            assert accepts(program, tokenizer.encode(text)), f"{text!r} was let through, and is not when it is read anew"
    assert ends, "no text came to its end within 40 tokens, so nothing was shown"


def programs(entry: Entry) -> Iterator[tuple[Program, tuple[str, ...], tuple[str, ...]]]:
    """Each example of the method's, compiled for the small tokenizer."""
    for text, inside, outside in entry.module.EXAMPLES:
        yield entry.module.Method(entry.knobs(), small_tokenizer()).compile(text), inside, outside


def accepts(program: Program, ids: list[int]) -> bool:
    """Whether a text of these tokens is let through to its end."""
    matcher = program.start()
    return all(matcher.push(token) for token in ids) and matcher.whole()


def _check_moves(program: Program, steps: int = 60) -> None:
    dice = torch.Generator().manual_seed(0)
    matcher, way = program.start(), []  # type: ignore[var-annotated]
    for _ in range(steps):
        assert _facts(matcher) == _facts(_behind(program, way)), f"behind {way} it matters how it came there"
        for token in matcher.forced()[:1]:
            may = matcher.allowed().nonzero().flatten().tolist()
            assert may == [token], f"behind {way} {token} is forced, yet others may follow"
        choices = matcher.allowed().nonzero().flatten().tolist()
        if way and (not choices or torch.rand((), generator=dice) < 0.3):
            back = 1 + int(torch.randint(len(way), (), generator=dice))
            matcher.pop(back)
            del way[-back:]
        elif choices:
            token = choices[int(torch.randint(len(choices), (), generator=dice))]
            other = int(torch.randint(small_tokenizer().vocab_size, (), generator=dice))
            if not matcher.allowed()[other] and matcher.push(other):
                matcher.pop(1)
                assert matcher.forced(), f"behind {way} {other} may not follow, but is taken"  # by bytes
            assert matcher.push(token), f"behind {way} {token} may follow, but is not taken"
            way.append(token)


def _behind(program: Program, way: list[int]) -> Matcher:
    matcher = program.start()
    for token in way:
        assert matcher.push(token)
    return matcher


def _facts(matcher: Matcher) -> tuple[Any, ...]:
    return matcher.allowed().tolist(), matcher.forced(), matcher.whole()
