"""Sarathi-Serve: the paper's claim on a simulated engine, its dynamic chunks, and what the claim rests on taken away."""

import pytest

from lithe import registry
from lithe.contracts.schedule import Text, simulate


def method(name, **knobs):
    entry = registry.find(f"serve/schedule/{name}")
    return entry.module.Method(entry.knobs(**knobs))


def traffic():
    """Twelve that decode all along, and thirty long prompts that come one after another."""
    steady = [Text(0.0, 8, 1500) for _ in range(12)]
    return steady + [Text(40.0 + 60 * i, 1500, 1) for i in range(30)]


def p99(trace):
    return trace.gaps[int(0.99 * len(trace.gaps))]


def first(trace):
    """Mean seconds to the first token of those that came with long prompts."""
    late = [text.times[0] - text.arrives for text in trace.texts if text.prompt > 100]
    return sum(late) / len(late)


def test_chunks_beside_decodes_end_the_stalls_at_equal_throughput():
    ours, other = (simulate(method(name), traffic(), budget=256, seats=64) for name in ("sarathi", "prefill_first"))
    assert p99(ours) < 0.5 * p99(other)
    assert ours.seconds == pytest.approx(other.seconds, rel=0.05)
    assert first(ours) < 4 * first(other)  # what it costs: prompts wait for the decodes beside them
    assert max(ours.gaps) <= 1.0 + 0.02 * 256 + 1e-9  # one turn of the budget
    assert max(other.gaps) > 1.0 + 0.02 * 1500


def test_without_a_budget_the_stalls_are_back():
    """It is the budget that does it, not the mixing."""
    ours, loose = (simulate(method("sarathi"), traffic(), budget=budget, seats=64) for budget in (256, 10**6))
    assert p99(loose) > 3 * p99(ours)


def test_late_chunks_shrink_so_that_the_time_holds():
    """Where attention costs, a budget in rows alone is late far into a prompt; in time it is not, for hardly more in all."""
    costs = {"budget": 128, "seats": 64, "fixed": 1.0, "each": 0.02, "behind": 2e-5}
    known, unknown = (simulate(method("sarathi"), traffic(), **costs, depth=depth) for depth in (2e-5 / 0.02, 0.0))
    asked = 1.0 + 0.02 * 128
    assert max(known.gaps) <= asked * 1.001
    assert max(unknown.gaps) > 1.5 * asked
    assert known.seconds < 1.25 * unknown.seconds


def test_a_batch_decoded_to_its_end_keeps_newcomers_waiting():
    ours, other = (simulate(method(name), traffic(), budget=256, seats=64) for name in ("sarathi", "decode_first"))
    assert first(other) > 10 * first(ours)


def test_dynamic_chunks_shrink_along_the_prompt():
    sizes = []

    class Line:
        budget = free = 256

    made = method("sarathi", low=32, stages=8, over=800)
    for length in range(0, 1000, 50):
        sizes.append(made.chunk(Text(0.0, 2000, 1, read=length), Line()))
    assert sizes[0] == 256
    assert sizes[-1] == 32
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 8
    assert made.chunk(Text(0.0, 2000, 1), type("Full", (), {"budget": 256, "free": 10})()) == 10


def test_who_came_last_gives_up_its_memory():
    early, late = Text(0.0, 10, 40), Text(1.0, 10, 40)
    trace = simulate(method("sarathi"), [early, late], slots=70)
    assert (early.stops, late.stops) == (0, 1)
    assert trace.skipped == 0
