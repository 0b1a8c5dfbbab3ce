"""Warps: parity with transformers, ties, ranges and refusals. Axes: N rows, V vocabulary."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.generation import logits_process as theirs

from lithe.errors import UsageError
from lithe.ops import truncate
from lithe.sampling.law import Law

CUT = float("-inf")
CONTEXTS = [[1, 1, 5, 499], [0, 2, 0, 2, 0], [7], [3, 3, 3, 499]]


def random_logits(seed, scale=3.0, dtype=torch.float32):
    return torch.randn(4, 500, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "values", "oracle"), [
    ("temperature", (0.3, 0.7, 1.0, 2.5), theirs.TemperatureLogitsWarper),
    ("top_k", (1, 7, 499, 500, 1000), theirs.TopKLogitsWarper),
    ("top_p", (0.1, 0.5, 0.9, 0.999), theirs.TopPLogitsWarper),
    ("min_p", (0.001, 0.05, 0.5, 1.0), theirs.MinPLogitsWarper),
    ("typical", (0.1, 0.2, 0.5, 0.95), theirs.TypicalLogitsWarper),
    ("epsilon", (3e-4, 1e-2, 0.9), theirs.EpsilonLogitsWarper),
    ("eta", (3e-4, 4e-3, 0.9), theirs.EtaLogitsWarper),
    ("repetition_penalty", (0.8, 1.0, 1.2, 5.0), theirs.RepetitionPenaltyLogitsProcessor),
])  # fmt: skip
def test_parity_with_transformers(name, values, oracle, dtype):
    for seed, value in enumerate(values):
        logits_NV = random_logits(seed, dtype=dtype)
        ours = Law.of(**{name: value})(logits_NV, CONTEXTS)
        for n in range(4):  # contexts of unequal length, so row by row
            expected = oracle(value)(torch.tensor(CONTEXTS[n : n + 1]), logits_NV[n : n + 1].clone())
            assert torch.equal(ours[n : n + 1], expected), f"{name}={value}, row {n}"


def test_parity_of_a_whole_law():
    """In transformers' order, whatever the order in which it was asked for."""
    logits_NV, ids = random_logits(0), torch.tensor([[1, 1, 5, 499]] * 4)
    law = Law.of(top_k=50, min_p=0.01, temperature=0.8, repetition_penalty=1.3)
    expected = theirs.LogitsProcessorList([theirs.RepetitionPenaltyLogitsProcessor(1.3), theirs.TemperatureLogitsWarper(0.8),
                                           theirs.TopKLogitsWarper(50), theirs.MinPLogitsWarper(0.01)])(ids, logits_NV.clone())
    assert torch.equal(law(logits_NV, ids.tolist()), expected)


def kept(logits_NV):
    return [(row_V > CUT).nonzero().flatten().tolist() for row_V in logits_NV]


def test_ties_keep_the_lowest_ids():
    logits_NV = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, 1.0]])
    assert kept(truncate.top_k(logits_NV, 1)) == [[1]]
    assert kept(truncate.top_k(logits_NV, 4)) == [[0, 1, 2, 3]]
    assert kept(truncate.top_p(logits_NV, 0.0)) == [[1]]
    flat_NV = torch.zeros(1, 10)
    assert kept(truncate.top_p(flat_NV, 0.35)) == [[0, 1, 2, 3]] == kept(truncate.typical(flat_NV, 0.35))
    assert kept(truncate.epsilon(flat_NV, 1.0)) == [[0]] == kept(truncate.eta(flat_NV, 1.0))
    assert kept(truncate.min_p(logits_NV, 1.0)) == [[1, 3]]  # equally likely: neither is below the other


@pytest.mark.parametrize("rounding", [1e-9, 0.5, 4.0])
def test_a_nucleus_found_without_sorting_is_the_same(rounding, monkeypatch):
    """Flat, sharp and tied rows of a large vocabulary, with the few looked at first and without."""
    scale_N = torch.tensor([[0.0], [0.1], [2.0], [4.0], [12.0]])
    logits_NV = (torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)) * scale_N / rounding).round() * rounding
    for mass in (0.0, 0.3, 0.9, 0.999):
        alone = [truncate.top_p(row_1V, mass) for row_1V in logits_NV.split(1)]
        with monkeypatch.context() as patch:
            patch.setattr(truncate, "FEW", 10**9)
            assert torch.equal(torch.cat(alone), truncate.top_p(logits_NV, mass))


logits = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30), st.just(CUT)), min_size=1, max_size=12).filter(
    lambda row: any(score > CUT for score in row))
knobs = {"top_k": st.integers(1, 15), **{name: st.floats(0, 1) for name in ("top_p", "min_p", "typical", "epsilon", "eta")}}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(knobs)), logits)
def test_truncation(data, name, row):
    """A subset, never empty, a law once normalised, of the size asked for; equal and likelier tokens are not passed over."""
    value = data.draw(knobs[name])
    logits_NV = torch.tensor([row], dtype=torch.float64)
    out_NV = Law.of(**{name: value})(logits_NV)
    p_V, (keep,) = logits_NV[0].softmax(-1), kept(out_NV)
    alive = sum(score > CUT for score in row)
    assert keep and torch.equal(out_NV[0, keep], logits_NV[0, keep])
    assert out_NV.softmax(-1).sum().item() == pytest.approx(1, abs=1e-12)
    if name == "typical":
        return
    likeliest = sorted(range(len(row)), key=lambda i: (-row[i], i))
    assert keep == sorted(likeliest[: len(keep)])
    if name == "top_k":
        assert len(keep) == min(value, alive)
    if name == "top_p":
        assert p_V[keep].sum() >= value - 1e-12  # the mass is reached, and not without the last one
        assert len(keep) == 1 or value == 1 or p_V[keep].sum() - p_V[keep].min() < value + 1e-12


def test_penalties():
    logits_NV = torch.tensor([[1.0, -1.0, 0.0, 2.0]] * 2)
    contexts = [[0, 0, 1], [3]]
    assert truncate.repetition(logits_NV, contexts, 2.0).tolist() == [[0.5, -2, 0, 2], [1, -1, 0, 1]]
    assert Law.of(presence_penalty=0.5)(logits_NV, contexts).tolist() == [[0.5, -1.5, 0, 2], [1, -1, 0, 1.5]]
    assert Law.of(frequency_penalty=0.5)(logits_NV, contexts).tolist() == [[0, -1.5, 0, 2], [1, -1, 0, 1.5]]
    both = Law.of(frequency_penalty=0.5, presence_penalty=1.0)
    assert both(logits_NV, contexts).tolist() == [[-1, -2.5, 0, 2], [1, -1, 0, 0.5]]


def test_logit_bias():
    logits_NV = torch.zeros(2, 8)
    out_NV = Law.of(logit_bias="5=-100+7=2.5+0=-inf")(logits_NV)
    assert out_NV.tolist() == [[CUT, 0, 0, 0, 0, -100, 0, 2.5]] * 2
    assert Law.of("logit_bias:logit_bias=5=-100+7=2.5")(logits_NV)[0, 7] == 2.5
    assert torch.equal(Law.of("logit_bias")(logits_NV), logits_NV)
    for text in ("5", "5=x", "5=1+5=2", "-1=2", "5=inf", "5=nan", "5=1++6=1"):
        with pytest.raises(UsageError, match="logit_bias"):
            Law.of(logit_bias=text)
    with pytest.raises(UsageError, match="the vocabulary has 8"):
        Law.of(logit_bias="8=1")(logits_NV)


def test_which_laws_sample():
    assert Law.of(temperature=0.5).greedy is False is Law.of(temperature=1.0, top_k=1).greedy
    assert Law.of(temperature=0).greedy is True is Law.of(top_k=5).greedy is Law.of(repetition_penalty=1.1).greedy
    logits_NV = random_logits(0)
    assert torch.equal(Law.of(temperature=0)(logits_NV), logits_NV)
    assert Law.of(frequency_penalty=0.1).reads_context
    assert not Law.of(temperature=1, top_p=0.9, logit_bias="1=1").reads_context


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -1), ("temperature", 1e-9), ("temperature", float("inf")), ("top_k", -1), ("top_p", 1.5), ("min_p", -0.1),
    ("repetition_penalty", 0), ("presence_penalty", 3), ("eta", float("nan")),
])  # fmt: skip
def test_values_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        Law.of(**{name: value})
