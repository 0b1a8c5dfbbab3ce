"""What a law is made of, and what a model's generation_config may ask for."""

import pytest
import torch

from lithe.errors import UsageError
from lithe.sampling.law import Law


def test_no_warp_is_greedy_and_temperature_decides():
    assert Law.of().greedy and Law.of(top_k=5).greedy and Law.of(temperature=0).greedy
    assert not Law.of(temperature=0.7).greedy


def test_penalties_come_first_whatever_the_order_asked():
    law = Law.of(top_p=0.9, temperature=0.5, repetition_penalty=1.3)
    assert [spec.entry.name for spec in law.specs] == ["repetition_penalty", "temperature", "top_p"]


def test_a_warp_that_is_off_is_left_out():
    assert str(Law.of(top_k=0, top_p=1.0, min_p=None)) == "Law()"


def test_a_warp_asked_for_twice_is_an_error():
    with pytest.raises(UsageError, match="twice"):
        Law.of("top_k:top_k=3", top_k=4)


def test_a_law_that_reads_the_text_says_so():
    with pytest.raises(UsageError, match="give contexts"):
        Law.of(repetition_penalty=1.2)(torch.zeros(1, 4))


@pytest.mark.parametrize(("settings", "given", "expected"), [
    ({}, {}, []),
    ({"temperature": 0.6, "top_p": 0.9}, {}, []),
    ({"do_sample": True, "temperature": 0.6, "top_k": 0}, {}, [("temperature", 0.6)]),
    ({"do_sample": True, "top_k": 20}, {}, [("temperature", 1.0), ("top_k", 20)]),
    ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"temperature": 0.0}, [("temperature", 0.0), ("top_k", 20)]),
    ({"repetition_penalty": 1.1}, {}, [("repetition_penalty", 1.1)]),
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.0}, []),
])  # fmt: skip
def test_the_models_own_wishes_give_way_to_what_is_asked(settings, given, expected):
    law = Law.wished(settings, **given)
    assert [(spec.entry.name, *spec.values.values()) for spec in law.specs] == expected
