"""The engine gives every request the text that it would get alone, whatever else happens: bit for bit where compiled."""

import copy
import threading
import time
from collections import deque
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from lithe.contracts.small import small_model
from lithe.decode.generate import request as sequence_of
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import TooLargeError, UnsupportedError, UsageError
from lithe.model.fast import fuse
from lithe.model.paged import Pages
from lithe.sampling.law import Law
from lithe.serve import engine as engine_module
from lithe.serve.engine import Engine
from lithe.serve.line import LEAST
from lithe.serve.request import QueueFullError, Request
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
    sequence = sequence_of(model, list(request.prompt), law=request.law, max_tokens=request.max_tokens,
                           seed=request.seed + choice, ignore_eos=request.ignore_eos)
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
def asked(draw, vocab):
    """A request: perhaps on a prefix that others share, perhaps several choices."""
    shared = ids(40, draw(st.integers(0, 1)), vocab)[: draw(st.sampled_from([0, 16, 40]))]
    own = ids(draw(st.integers(1, 30)), draw(st.integers(0, 3)), vocab)
    law = draw(st.sampled_from(sorted(LAWS)))
    return Request(prompt=tuple(shared + own)[:50], law=Law.of(**LAWS[law]), max_tokens=draw(st.integers(1, 9)),
                   seed=draw(st.integers(0, 9)), choices=draw(st.sampled_from([1, 1, 1, 2, 3])),
                   method=draw(st.sampled_from(METHODS)), ignore_eos=True, priority=draw(st.integers(0, 1)))


def same_whatever_happens(data, model):
    page = data.draw(st.sampled_from([4, 8, 16]), label="page")
    pages = data.draw(st.sampled_from([24, 30, 200]), label="tokens") * 4 // page  # few enough for preemption, or plenty
    engine = Engine(model, page=page, budget=data.draw(st.integers(6, 60), label="budget"), sequences=6,
                    memory=pages * Pages.bytes(model.config, page, model.dtype), sharing=data.draw(st.booleans()))
    tickets, turns, rows = [], 0, []
    for _ in range(data.draw(st.integers(1, 6), label="requests")):
        request = data.draw(asked(model.config.vocab))
        after = data.draw(st.sampled_from([None, None, None, 0, 2, 5]), label="cancelled after")
        tickets.append((engine.submit(request), request, turns, after))
        for _ in range(data.draw(st.integers(0, 4), label="turns to the next")):
            rows.append(turn(engine, tickets, turns))
            turns += 1
    while engine.busy:
        rows.append(turn(engine, tickets, turns))
        turns += 1
        assert turns < 2000, "it does not come to an end"
    assert max(rows, default=0) <= engine.budget
    for ticket, request, _, after in tickets:
        assert ticket.finished, "nothing is to be done, but somebody waits"
        tokens, ends = told(ticket)
        for choice in range(request.choices):
            right, got = alone(model, request, choice), tokens.get(choice, [])
            if ends[choice] == "cancelled":
                assert after is not None
                assert got == right[: len(got)]
            else:
                assert (got, ends[choice]) == (right, "length")
    store, tree = engine.room.store, engine.room.tree
    assert store.count - len(store.free) == (len(tree.nodes) if tree else 0)
    if tree:
        tree.clear()
    assert not any(store.holders)
    return engine


def turn(engine, tickets, turns):
    """One turn, those leaving whose time has come. Returns its rows; whoever could decode does so, or is preempted."""
    for ticket, _, since, after in tickets:
        if after is not None and turns - since >= after:
            ticket.cancel()
    before = engine.counts["rows"]
    decoding = {job: (len(job.sequence.ids), job.usage.preempted) for job in engine.running if not job.left}
    engine.step()
    for job, (length, preempted) in decoding.items():
        assert len(job.sequence.ids) > length or job.usage.preempted > preempted or job.ticket.cancelled, "a decode waited"
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


def engine_with(model, **settings):
    return Engine(model, **({"page": 4, "budget": 32, "sequences": 8} | settings))


def finish(engine):
    while engine.step():
        pass


def test_memory_is_taken_from_who_came_last_and_its_text_stays():
    model = target()
    law = Law.of(**LAWS["sampled"])
    requests = [Request(prompt=tuple(ids(12, n, 32)), max_tokens=24, ignore_eos=True, law=law) for n in range(4)]
    engine = engine_with(model, memory=24 * Pages.bytes(model.config, 4, model.dtype))
    tickets = [engine.submit(request) for request in requests]
    finish(engine)
    assert engine.counts["preempted"] > 0
    for ticket, request in zip(tickets, requests, strict=True):
        assert told(ticket)[0][0] == alone(model, request)
    with pytest.raises(TooLargeError, match="pages"):
        engine_with(model, memory=8 * Pages.bytes(model.config, 4, model.dtype)).submit(requests[0])


def test_choices_fork_behind_one_prompt():
    model = target()
    engine, request = engine_with(model), Request(prompt=tuple(ids(30, 1, 32)), max_tokens=8, choices=4, ignore_eos=True,
                                                  law=Law.of(**LAWS["sampled"]), seed=3)
    ticket = engine.submit(request)
    finish(engine)
    tokens, _ = told(ticket)
    assert [tokens[i] for i in range(4)] == [alone(model, request, i) for i in range(4)]
    assert len(set(map(tuple, tokens.values()))) > 1
    assert engine.counts["rows"] <= 30 + 4 * 8


@pytest.mark.parametrize("method", [None, "prompt_lookup:tokens=4"])
def test_choices_fork_where_nothing_of_the_prompt_is_left_to_read(method):
    """A prompt of one token is never read, nor one whose pages are all but its last token."""
    model = target()
    engine = engine_with(model, page=4)
    for prompt in (ids(1, 1, model.config.vocab), ids(9, 2, model.config.vocab), ids(9, 2, model.config.vocab)):
        for tokens in (1, 5):
            request = Request(prompt=tuple(prompt), max_tokens=tokens, choices=3, seed=1, law=Law.of(temperature=0.9),
                              ignore_eos=True, method=method)
            ticket = engine.submit(request)
            finish(engine)
            assert ticket.finished, "somebody is still waited for"
            assert told(ticket)[0] == {choice: alone(model, request, choice) for choice in range(3)}


def test_what_was_read_is_not_read_again_and_goes_when_pages_are_wanted():
    model = target()
    engine = engine_with(model, memory=20 * Pages.bytes(model.config, 4, model.dtype))
    prompt = tuple(ids(33, 5, 32))
    for wanted in (0, 32):
        ticket = engine.submit(Request(prompt=prompt, max_tokens=4, ignore_eos=True))
        finish(engine)
        *_, last = ticket.events()
        assert last.usage.cached == wanted
    for seed in (6, 7):
        engine.submit(Request(prompt=tuple(ids(40, seed, 32)), max_tokens=4, ignore_eos=True))
        finish(engine)
    assert engine.stats()["pages_evicted"] > 0
    ticket = engine.submit(Request(prompt=prompt, max_tokens=4, ignore_eos=True))
    finish(engine)
    *_, last = ticket.events()
    assert last.usage.cached < 32


def test_larger_priorities_run_first_and_deadlines_end():
    engine = engine_with(target(), sequences=1)
    order = []
    for priority in (0, 0, 5):
        ticket = engine.submit(Request(prompt=(5, 6, 7), max_tokens=3, priority=priority, ignore_eos=True))
        ticket.listen(lambda event, p=priority, n=ticket.number: event.finished and order.append((p, n)))
    finish(engine)
    assert [p for p, _ in order] == [5, 0, 0]
    assert order[1][1] < order[2][1]
    late = engine.submit(Request(prompt=(5, 6, 7), max_tokens=3, deadline=1e-9))
    finish(engine)
    assert told(late)[1] == {0: "deadline"}


def test_methods_with_rounds_of_their_own_run_beside_the_others():
    model = target()
    engine = engine_with(model)
    requests = [Request(prompt=tuple(ids(9, n, 32)), max_tokens=7, method=method, ignore_eos=True)
                for n, method in enumerate(("swift", None, "draft_verify", "prompt_lookup"))]
    tickets = [engine.submit(request) for request in requests]
    finish(engine)
    for ticket, request in zip(tickets, requests, strict=True):
        assert told(ticket)[0][0] == alone(model, request)


def test_nobody_overtakes_a_request_that_waits_for_seats():
    engine = engine_with(target(), sequences=2)
    ask = lambda **more: engine.submit(Request(prompt=(5, 6), max_tokens=4, ignore_eos=True, **more))
    first, both, later = ask(method="swift"), ask(choices=2), ask(method="swift")
    assert not engine.desk("swift").joins
    while not both.finished:
        assert engine.step() and engine.stats()["running"] <= 2 and not later.finished
    finish(engine)
    assert first.finished and later.finished


def test_log_probabilities_are_those_of_the_model():
    model = target()
    prompt = tuple(ids(21, 2, 32))
    engine = engine_with(model, budget=8)
    for _ in range(2):  # the second time the prompt is remembered
        ticket = engine.submit(Request(prompt=prompt, max_tokens=5, logprobs=3, echo=True, method="prompt_lookup",
                                       ignore_eos=True))
        finish(engine)
        events = list(ticket.events())
        before = [one for event in events for one in event.prompt_logprobs or []]
        after = [one for event in events for one in event.logprobs or []]
        text = [*prompt, *(one.token for one in after)]
        assert [one.token for one in before] == list(prompt)
        law_TV = model(torch.tensor([text]), logits="all").scores[0].log_softmax(-1)
        for place, one in enumerate([*before, *after][1:], 1):
            assert one.logprob == pytest.approx(float(law_TV[place - 1, one.token]), abs=1e-5)
            assert [token for token, _ in one.top] == law_TV[place - 1].topk(3).indices.tolist()


def test_a_prediction_is_verified_and_counted():
    model = target()
    plain = Request(prompt=tuple(ids(9, 4, 32)), max_tokens=20, ignore_eos=True)
    right = alone(model, plain)
    for told_tokens, most in ((tuple(right), 3), (tuple(ids(20, 9, 32)), 20)):
        engine = engine_with(model)
        ticket = engine.submit(Request(prompt=plain.prompt, max_tokens=20, ignore_eos=True, prediction=told_tokens))
        finish(engine)
        events = list(ticket.events())
        assert [token for event in events for token in event.tokens] == right
        usage = events[-1].usage
        assert usage.passes <= most
        assert usage.accepted_prediction + usage.rejected_prediction == usage.drafted > 0
    assert usage.rejected_prediction > 0


def test_what_cannot_be_is_refused_at_the_door():
    engine = engine_with(target(), queue=2)
    wrong = [({"choices": 0}, UsageError), ({"choices": 9}, UsageError), ({"logprobs": -1}, UsageError),
             ({"echo": True}, UsageError), ({"deadline": 0.0}, UsageError), ({"method": "nothing"}, UsageError),
             ({"adapter": "a"}, UsageError),
             ({"constraint_text": "x"}, UsageError), ({"prediction": (1,), "method": "suffix"}, UsageError),
             ({"prompt": (1,) * 64}, TooLargeError), ({"prompt": (99,)}, UsageError), ({"max_tokens": 0}, UsageError),
             ({"method": "swift", "logprobs": 1}, UnsupportedError)]
    for change, error in wrong:
        with pytest.raises(error):
            engine.submit(Request(**({"prompt": (5, 6)} | change)))
    assert not engine.busy
    for _ in range(2):
        engine.submit(Request(prompt=(5, 6)))
    with pytest.raises(QueueFullError) as full:
        engine.submit(Request(prompt=(5, 6)))
    assert full.value.after > 0


def test_the_thread_serves_drains_and_closes():
    engine = engine_with(target())
    engine.start()
    tickets = [engine.submit(Request(prompt=(5, 6, n), max_tokens=12, ignore_eos=True)) for n in range(5)]
    tickets[2].cancel()
    ends = [told(ticket)[1][0] for ticket in tickets]
    assert ends[:2] + ends[3:] == ["length"] * 4
    left = engine.submit(Request(prompt=(5, 6), max_tokens=40, ignore_eos=True))
    engine.close(drain=30)
    assert told(left)[1] == {0: "length"}
    with pytest.raises(QueueFullError, match="closing"):
        engine.submit(Request(prompt=(5, 6)))
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0


def test_a_failing_text_fails_alone(monkeypatch):
    """What one draft breaks is told to its requests; the engine goes on with others."""
    engine = engine_with(target())
    desk = engine.desk("prompt_lookup")
    monkeypatch.setattr(desk.plan.draft, "propose", lambda sequences, room: 1 / 0)
    engine.start()
    broken = engine.submit(Request(prompt=(5, 6), max_tokens=5, method="prompt_lookup"))
    *_, last = broken.events()
    assert last.finished == "error"
    monkeypatch.setattr(desk.plan.draft, "start", lambda sequences: 1 / 0, raising=False)
    hopeless = [engine.submit(Request(prompt=(5, 6), max_tokens=5, method="prompt_lookup", choices=2)) for _ in range(2)]
    assert all(told(ticket)[1] == {0: "error", 1: "error"} for ticket in hopeless)
    fine = engine.submit(Request(prompt=(5, 6), max_tokens=5, ignore_eos=True))
    assert told(fine)[1] == {0: "length"} and engine.alive
    engine.close()
    assert not engine.alive
    assert not any(engine.room.store.holders[page] for page in engine.room.store.free)


def test_nothing_is_lost_between_the_door_and_the_close():
    """A request that was let in while the engine closes is served or told its end."""
    engine, inside = engine_with(target()), threading.Event()

    class Slow(deque):
        def extend(self, jobs):
            inside.set()
            time.sleep(0.1)
            super().extend(jobs)

    engine.inbox = Slow()
    engine.start()
    found = []
    submitter = threading.Thread(target=lambda: found.append(engine.submit(Request(prompt=(5, 6), max_tokens=3))))
    submitter.start()
    inside.wait()
    engine.close()
    submitter.join()
    assert found[0].finished


def test_chunks_far_behind_are_smaller_where_a_time_was_asked_for(monkeypatch):
    """Each turn has as many rows as the time between two tokens allows where they stand, and the text stays."""
    model = target()
    monkeypatch.setattr(engine_module, "profile", lambda model, between: (20, 0.05))
    engine, request = Engine(model, page=4, sequences=4), Request(prompt=tuple(ids(50, 1, 32)), max_tokens=4, ignore_eos=True)
    ticket, turns = engine.submit(request), []
    while engine.busy:
        before = engine.counts["rows"]
        engine.step()
        turns.append(engine.counts["rows"] - before)
    chunks = turns[: turns.index(1)]
    assert sum(chunks) == 50 and sorted(chunks, reverse=True) == chunks
    assert 20 > chunks[0] > chunks[1] >= LEAST
    assert told(ticket)[0][0] == alone(model, request)
