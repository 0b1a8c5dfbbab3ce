"""The engine gives every request the text that decoding it alone would give: whatever else happens, bit for bit where compiled."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from lithe.contracts.small import small_model
from lithe.decode.generate import request as sequence_of
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import TooLargeError
from lithe.model.fast import fuse
from lithe.sampling.law import Law
from lithe.serve.engine import Engine
from lithe.serve.request import Request
from tests.kernels.variants import compiled

KINDS = [("fp32", 0, torch.float32), ("bf16", 0, torch.bfloat16), ("int8", 32, torch.bfloat16), ("int4", 32, torch.float32)]
METHODS = (None, "prompt_lookup:tokens=4", "token_recycling:nodes=6", "suffix:nodes=5", "jacobi")
LAWS = {"greedy": {}, "sampled": {"temperature": 0.9, "top_k": 20}}


@cache
def target(kind=None, group=0, dtype=torch.float32):
    """The contracts' small model, in float64 or packed; one whose keys and values tell each position apart."""
    model = small_model(seed=0)
    return model if kind is None else fuse(copy.deepcopy(model).to(dtype), kind, group)


def ids(rows, seed, vocab):
    return torch.randint(3, vocab, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(model, request, choice=0):
    """The tokens of one choice, decoded by itself."""
    sequence = sequence_of(model, list(request.prompt), law=request.law, max_tokens=request.max_tokens, seed=request.seed + choice,
                           ignore_eos=request.ignore_eos)
    for _ in run(plan(model, draft=request.method), [sequence]):
        pass
    return sequence.tokens


def told(ticket):
    """What each choice got, and how it ended."""
    tokens, ends = {}, {}
    for event in ticket.events():
        tokens.setdefault(event.choice, []).extend(event.tokens)
        if event.finished:
            ends[event.choice] = event.finished
    return tokens, ends


@st.composite
def asked(draw, vocab, context):
    """A request: perhaps on a prefix that others share, perhaps several choices."""
    shared = ids(40, draw(st.integers(0, 1)), vocab)[: draw(st.sampled_from([0, 16, 40]))]
    own = ids(draw(st.integers(1, 30)), draw(st.integers(0, 3)), vocab)
    law = draw(st.sampled_from(sorted(LAWS)))
    return Request(prompt=tuple(shared + own), law=Law.of(**LAWS[law]), max_tokens=draw(st.integers(1, 9)), seed=draw(st.integers(0, 9)),
                   choices=draw(st.sampled_from([1, 1, 1, 2, 3])), method=draw(st.sampled_from(METHODS)), ignore_eos=True,
                   priority=draw(st.integers(0, 1)))


def same_whatever_happens(data, model):
    vocab, context = model.config.vocab, model.config.context
    page = data.draw(st.sampled_from([4, 8, 16]), label="page")
    pages = data.draw(st.sampled_from([24, 30, 200]), label="tokens") * 4 // page  # few enough for preemption, or plenty
    engine = Engine(model, page=page, budget=data.draw(st.integers(4, 60), label="budget"), memory=0, sequences=6,
                    sharing=data.draw(st.booleans(), label="sharing")) if False else engine_of(model, data, page, pages)
    requests = [data.draw(asked(vocab, context)) for _ in range(data.draw(st.integers(1, 6)))]
    waits = [data.draw(st.integers(0, 4)) for _ in requests]  # turns between arrivals
    leaves = [data.draw(st.sampled_from([None, None, None, 0, 2, 5])) for _ in requests]  # cancelled after so many turns
    tickets, turns = [], 0
    rows = []
    for request, wait in zip(requests, waits, strict=True):
        try:
            tickets.append((engine.submit(request), request, turns, leaves[len(tickets)]))
        except TooLargeError:
            leaves.pop(len(tickets))
        for _ in range(wait):
            rows.append(turn(engine, tickets, turns))
            turns += 1
    while engine.busy:
        rows.append(turn(engine, tickets, turns))
        turns += 1
        assert turns < 2000, "it does not come to an end"
    assert max(rows, default=0) <= engine.budget
    for ticket, request, _, leaves_after in tickets:
        tokens, ends = told(ticket)
        for choice in range(request.choices):
            right, got = alone(model, request, choice), tokens.get(choice, [])
            if ends[choice] == "cancelled":
                assert leaves_after is not None
                assert got == right[: len(got)]
            else:
                assert (got, ends[choice]) == (right, "length")
    store, tree = engine.room.store, engine.room.tree
    assert store.count - len(store.free) == (len(tree.nodes) if tree else 0)
    if tree:
        tree.clear()
    assert not any(store.holders)


def engine_of(model, data, page, pages):
    engine = Engine(model, page=page, budget=data.draw(st.integers(6, 60), label="budget"), sequences=6,
                    memory=pages * engine_bytes(model, page), sharing=data.draw(st.booleans(), label="sharing"))
    assert engine.room.store.count <= pages
    return engine


def engine_bytes(model, page):
    from lithe.model.paged import Pages

    return Pages.bytes(model.config, page, model.dtype)


def turn(engine, tickets, turns):
    """One turn, those leaving whose time has come. Returns its rows; whoever decoded before either does again or was preempted."""
    for ticket, _, since, after in tickets:
        if after is not None and turns - since >= after:
            ticket.cancel()
    before = engine.counts["rows"]
    decoding = {job: (len(job.sequence.ids), job.usage.preempted) for job in engine.running if not job.left}
    engine.step()
    for job, (length, preempted) in decoding.items():
        assert len(job.sequence.ids) > length or job.usage.preempted > preempted or job.ticket.cancelled, "a decode was skipped"
    return engine.counts["rows"] - before


fuzz = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@fuzz
@given(data=st.data())
def test_output_is_that_of_one_sequence_alone(data):
    same_whatever_happens(data, target())


@compiled
@pytest.mark.parametrize(("kind", "group", "dtype"), KINDS)
@settings(fuzz, max_examples=10)
@given(data=st.data())
def test_the_same_bit_for_bit_in_every_precision(kind, group, dtype, data):
    same_whatever_happens(data, target(kind, group, dtype))
