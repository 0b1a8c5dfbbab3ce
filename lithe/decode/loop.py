"""The one decoding loop. Axes: B sequences, N tree nodes, V vocabulary.

    draft.propose -> one masked pass -> rule.walk -> commit -> draft.observe

A chain is a tree of width one and plain decoding is a tree that is only its root, so there is nothing else. But several
rounds of greedy decoding may be one call (`stride`): after a pass all is cold, and Python costs 100 us each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Seq
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lithe.decode import forced, late, stride
from lithe.decode.check import check_trees, check_walk
from lithe.decode.ghosts import haunted
from lithe.decode.plan import DecodePlan
from lithe.decode.told import Told
from lithe.decode.whole import moves
from lithe.errors import LitheError
from lithe.model.decoder import ALL, Output
from lithe.model.mask import Tree as TreeMask
from lithe.ops.tree import Tree, Walk
from lithe.sampling.sequence import Sequence
from lithe.sampling.step import Step as Step


@dataclass
class Round:
    """What a draft learns after a walk: its tree, what was accepted, the taps [N, C] and, for the asking, the raw logits."""

    sequence: Sequence
    tree: Tree
    walk: Walk
    told: Told
    taps: dict[int | str, Tensor]
    nodes: int  # that had a row in the pass

    @property
    def logits_NV(self) -> Tensor:
        return self.told.rows_RV[: self.nodes]

    @property
    def ghosts_GV(self) -> Tensor:
        return self.told.rows_RV[self.nodes : self.nodes + len(self.tree.ghosts)]


def step(plan: DecodePlan, sequences: list[Sequence]) -> list[Step]:
    """One round for every sequence: at least one token each, exactly those that plain decoding would give."""
    if plan.calm and all([sequence.bare for sequence in sequences]):
        return _drafted(plan, sequences)  # nothing but the pass knows tensors here, and it enters the mode where it does
    with plan.mode:
        return (_drafted if plan.search is None else _searched)(plan, sequences)


def _drafted(plan: DecodePlan, sequences: list[Sequence]) -> list[Step]:
    """A round as drafts and rules have it."""
    draft, lanes, now = plan.draft, plan.lanes, plan.lanes.now
    begun = now()
    if lanes.sync(sequences):
        lanes.prefill(plan.taps, getattr(draft, "read", None))
    read = now()
    trees = propose(plan, sequences)
    drafted = now()
    out = _verify(plan, trees)
    verified = now()
    told = [Told.of(out, b) for b in range(len(trees))]
    shown = [{name: tap[b] for name, tap in out.taps.items()} for b in range(len(trees))] if plan.taps else [{}] * len(trees)
    rounds, steps = settle(plan, sequences, trees, told, shown)
    lanes.commit([[0, *r.walk.path] for r in rounds])
    walked = now()
    if draft is not None:
        draft.observe(rounds)
    seconds = dict(prefill=read - begun, draft=drafted - read, verify=verified - drafted, walk=walked - verified,
                   observe=now() - walked)
    for done in steps:
        done.seconds = seconds
    return steps


def settle(plan: DecodePlan, sequences: list[Sequence], trees: list[Tree], told: Seq[Told],
           taps: Seq[dict[Any, Tensor]]) -> tuple[list[Round], list[Step]]:
    """Walk every tree and commit what was found to its sequence. told[b], taps[b]: of its nodes, then of its ghosts."""
    rounds, steps, sizes = [], [], [len(tree.tokens) for tree in trees]
    if plan.is_late:
        late.add(plan.draft, sequences, trees)
    for sequence, tree, size, said, tap in zip(sequences, trees, sizes, told, taps, strict=True):
        walk = _walk(plan, sequence, tree, said, size)
        rounds.append(Round(sequence, tree, walk, said, {name: rows_RC[:size] for name, rows_RC in tap.items()}, size))
        found = [(tree.tokens[node], tree.sources.get(node, plan.source)) for node in walk.path] + [(walk.token, "")]
        steps.append(_push(sequence, found, size + len(tree.ghosts)))
    return rounds, steps


def _walk(plan: DecodePlan, sequence: Sequence, tree: Tree, told: Told, size: int) -> Walk:
    """What the rule decides; one that follows the likeliest tokens alone needs no logits. Raises LitheError where it cannot."""
    rule, later = plan.rule(sequence), len(tree.tokens) > size
    try:
        if sequence.bare and not later and hasattr(rule, "walk_best"):
            walk = rule.walk_best(tree, told.best)
        else:
            scores_NV = _scores(sequence, tree, told.rows_RV[:size])
            walk = rule.walk(tree, late.padded(tree, scores_NV, size), sequence.dice)
    except ValueError as problem:
        raise LitheError(f"{plan.name} cannot go on: {problem}") from problem
    check_walk(plan, tree, walk)
    return late.ended(tree, walk, size) if later else walk


def run(plan: DecodePlan, sequences: list[Sequence]) -> Iterator[Step]:
    """Rounds until every sequence has finished. What a draft does at the start counts as drafting of the first round."""
    before, method = plan.lanes.now(), plan.search or plan.draft
    if method is not None and hasattr(method, "start"):
        method.start(sequences)
    begun = plan.lanes.now() - before
    while alive := [sequence for sequence in sequences if not sequence.finished]:
        for steps in rounds(plan, alive):
            steps[0].seconds["draft"] += begun  # the batch shares its seconds
            begun = 0.0
            yield from steps


def rounds(plan: DecodePlan, sequences: list[Sequence]) -> Iterator[list[Step]]:
    """The next round; or the next ones, made by one call. Tokens are committed as they are asked for."""
    strokes, reading = stride.strokes(plan, sequences)
    if not strokes:
        steps = step(plan, sequences)
        steps[0].seconds["prefill"] += reading
        yield steps
    left = len(strokes)
    try:
        for stroke in strokes:
            begun = plan.lanes.now()
            steps = [_push(s, found, stroke.nodes) for s, found in zip(sequences, stroke.found, strict=True)]
            if plan.draft is not None:
                plan.draft.after(*sequences)
            lengths = [len(s.ids) for s in sequences]
            stroke.seconds["walk"] += plan.lanes.now() - begun
            seconds = dict(prefill=reading, **stroke.seconds)
            left, reading = left - 1, 0.0
            for done in steps:
                done.seconds = seconds
            yield steps
            if [len(s.ids) for s in sequences] != lengths or any([s.finished for s in sequences]):
                return  # who was told of a token may have ended or changed its text
    finally:
        if left:
            stride.forget(plan, sequences)


def propose(plan: DecodePlan, sequences: list[Sequence], slots: int | None = None) -> list[Tree]:
    """A tree a sequence, never deeper than the tokens it may still take nor larger than `slots`: what the lanes' cache has."""
    free = all([s.constraint is None for s in sequences])
    if free and plan.draft is None:
        return [Tree.root(s.ids[-1]) for s in sequences]
    room = [s.left - 1 for s in sequences]
    if slots is None:
        slots = plan.lanes.cache.capacity - max(plan.lanes.cache.lengths)
    must = [] if free else forced.tokens(plan, sequences, room, slots)
    if plan.draft is None:
        trees = [Tree.root(s.ids[-1]) for s in sequences]
    else:
        trees = plan.draft.propose(sequences, forced.rest(room, must))
        check_trees(plan, sequences, trees)
        trees = [tree.cut(depth=depth, nodes=slots) for tree, depth in zip(trees, room, strict=True)]
    return forced.chains(plan, sequences, trees, must) if must else trees


def _verify(plan: DecodePlan, trees: list[Tree]) -> Output:
    """Logits [B, N, V] and taps of every node of every tree, then of its ghosts, from one masked pass."""
    tokens, parents = [tree.tokens for tree in trees], [tree.parents for tree in trees]
    if any([tree.ghosts for tree in trees]):
        return haunted(plan.lanes, plan.draft, trees, plan.taps)
    begun = plan.draft.begun(trees) if hasattr(plan.draft, "begun") else {}  # layers that ran while drafting run no second time
    if all([above == list(range(-1, len(above) - 1)) for above in parents]):  # chains
        return plan.lanes.run(tokens, logits=ALL, taps=plan.taps, **begun)
    return plan.lanes.run(tokens, depths=[tree.depths for tree in trees], mask=TreeMask(parents), logits=ALL, taps=plan.taps,
                          **begun)


def _scores(sequence: Sequence, tree: Tree, raw_NV: Tensor) -> Tensor:
    """Each node's logits under the sequence's constraint, warped by its law, given the path that leads to it."""
    contexts = None
    if sequence.constraint is not None:
        raw_NV = forced.masked(sequence, tree, raw_NV)
    if sequence.law.reads_context:
        contexts = [sequence.ids + [tree.tokens[node] for node in tree.path(i)] for i in range(len(raw_NV))]
    return sequence.law(raw_NV, contexts)


def _searched(plan: DecodePlan, sequences: list[Sequence]) -> list[Step]:
    """A round of what replaces the loop: its tokens are committed and counted here, as any others are."""
    forced.check(plan, sequences)
    now = plan.lanes.now
    begun = now()
    plan.search.prefill(sequences)
    read = now()
    found = moves(plan, sequences)
    verified = now()
    steps = [_push(s, list(zip(m.tokens, m.sources, strict=True)), m.nodes) for s, m in zip(sequences, found, strict=True)]
    seconds = dict(prefill=read - begun, draft=0.0, verify=verified - read, walk=now() - verified, observe=0.0)
    for done in steps:
        done.seconds = seconds
    return steps


def _push(sequence: Sequence, found: list[tuple[int, str]], nodes: int) -> Step:
    """Commit tokens and their sources one by one, so that ends and stop strings cut exactly where plain decoding stops."""
    step = Step(sequence, [], [], [], nodes)
    for token, origin in found:
        step.pieces.append(sequence.push(token, origin))
        step.tokens.append(token)
        step.sources.append(origin)
        if sequence.finished:
            break
    return step
