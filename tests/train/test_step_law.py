"""The Step Law (row 94): its numbers, where it says nothing, and the grid that corrects it."""

import math

import pytest

from lithe.errors import UsageError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.train.step_law import Advice, calibrate, step_law, tokens_of, weights_of

PAIRS = ((2.1e8, 1e11), (7e9, 1.4e12), (738e3, 6.1e6), (6e7, 2e9), (1.1e9, 2e11), (7e10, 1.5e13))


@pytest.mark.parametrize(("sizes", "rate", "batch"), [
    (PAIRS[0], 4.97e-3, 1.108e6), (PAIRS[1], 9.17e-4, 5.0e6), (PAIRS[2], 1.4e-2, 4.4e3)])
def test_the_laws_numbers(sizes, rate, batch):
    found = step_law(*sizes)
    assert found.rate == pytest.approx(rate, rel=0.02)
    assert found.tokens == pytest.approx(batch, rel=0.02)


@pytest.mark.parametrize(("weights", "tokens"), PAIRS)
def test_it_is_close_to_the_medians_of_the_papers_bootstrap(weights, tokens):
    found = step_law(weights, tokens)
    assert found.rate == pytest.approx(math.exp(0.578) * weights**-0.7122 * tokens**0.3070, rel=0.03)
    assert found.tokens == pytest.approx(math.exp(-0.556) * tokens**0.5713, rel=0.03)


def test_it_grows_and_falls_as_the_paper_says():
    at = step_law(1e8, 1e10)
    assert step_law(2e8, 1e10).rate < at.rate < step_law(1e8, 2e10).rate
    assert step_law(2e8, 1e10).tokens == at.tokens < step_law(1e8, 2e10).tokens
    assert at.rates[0] < at.rate < at.rates[1]
    assert at.batch(512) % 512 == 0 and abs(at.batch(512) - at.tokens) <= 256
    assert Advice(1.0, 3.0).batch(512) == 512
    total = tokens_of(1000)
    assert 1000 * step_law(1, total).tokens == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 1), (1, math.inf), (math.nan, 1)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(UsageError, match="positive sizes"):
        step_law(*sizes)


def test_embeddings_are_not_counted():
    config = Config(vocab=100, width=8, layers=1, heads=1, kv_heads=1, ffn=8, context=8)
    model = Decoder(config)
    assert weights_of(model) == sum(w.numel() for w in model.parameters()) - 2 * 800


def test_a_grid_of_probes_finds_the_bottom_of_a_bowl():
    def bowl(rate, tokens):
        return 2 + 0.3 * math.log2(rate / 1.5e-3) ** 2 + 0.1 * math.log2(tokens / 7e3) ** 2

    found = calibrate(bowl, Advice(1e-3, 1e4))
    assert found.rate == pytest.approx(1.5e-3, rel=1e-6) and found.tokens == pytest.approx(7e3, rel=1e-6)
    edge = calibrate(lambda rate, tokens: -rate, Advice(1e-3, 1e4))  # no bowl: the best probe
    assert edge.rate == pytest.approx(2e-3)
    with pytest.raises(UsageError, match="no number"):
        calibrate(lambda rate, tokens: math.nan, Advice(1e-3, 1e4))
