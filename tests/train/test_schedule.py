"""Schedules: values at the corners, a decay that begins at any step, a decay that is replanned."""

import pytest

from lithe.train.schedule import Cosine, Wsd


def test_cosine_warms_up_and_ends_at_its_floor():
    schedule = Cosine(steps=110, warmup=10, floor=0.1)
    assert [schedule(0), schedule(9), schedule(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(110) == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay_ends_at_zero():
    schedule = Wsd(warmup=4, decay_from=50, decay_steps=10)
    assert [schedule(0), schedule(3), schedule(49), schedule(50), schedule(55), schedule(60)] == pytest.approx(
        [0.25, 1, 1, 1, 0.5, 0])
    assert schedule.steps == 60 and not schedule.ending(49) and schedule.ending(50)


def test_an_open_wsd_can_be_ended_and_replanned():
    schedule = Wsd(warmup=0).end(20, 10)
    assert schedule.steps == 30 and schedule(25) == pytest.approx(0.5)
    slower = schedule.end(25, 20)  # the machine turned out slower: same rate at 25, a later end
    assert slower.steps == 45 and slower(25) == pytest.approx(0.5) and slower(35) == pytest.approx(0.25)
    assert slower.ending(22) and slower.first == 20
