"""EasySpec: groups of layers, what calibration keeps true, and that a group of one is the model as it is."""

from contextlib import nullcontext

import pytest
import torch

from lithe import registry
from lithe.contracts.draft import chi_squared, joint_law, texts
from lithe.contracts.small import small_model
from lithe.decode.loop import run, step
from lithe.decode.plan import plan
from lithe.model.checkpoint import save
from lithe.sampling.law import Law
from lithe.sampling.sequence import Sequence
from tests.methods.caches import fresh

method = registry.find("easyspec").module
PROMPTS = ([1], [3, 4, 5, 3, 4], list(range(20)))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A draft of eight layers, near enough to the target to be right now and then: the target itself."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    save(small_model(layers=8), folder, dtype=torch.float64)
    return folder


def accepted(target, spec, tokens=40):
    """The share of drafted tokens that were accepted, and the plan."""
    made, good, tried = plan(target, draft=spec), 0, 0
    for prompt in PROMPTS:
        for done in run(made, [Sequence(prompt, limit=tokens, context=64)]):
            good, tried = good + len(done.tokens) - 1, tried + done.nodes - 1
    return good / tried, made


def test_the_first_and_the_last_layer_stand_alone():
    assert method.groups(2, 4) == [(0,), (1,)] and method.groups(1, 4) == [(0,)]
    assert method.groups(10, 4) == [(0,), (1, 2, 3, 4), (5, 6, 7, 8), (9,)]
    assert len(method.groups(18, 4)) == 2 + 4  # attentions one after the other: 2 + ceil(16 / 4)


def test_what_comes_out_is_the_targets_whatever_the_groups(deep):
    target = small_model(layers=8)
    plain = texts(plan(target), PROMPTS, 30)
    for knobs in ("group=4", "group=6,tokens=7", "group=4,calibrate=false", "group=3,ffn=beside"):
        assert texts(plan(target, draft=f"easyspec:model={deep},{knobs}"), PROMPTS, 30) == plain, knobs


def test_a_group_of_one_drafts_as_the_model_itself(deep):
    target = small_model(layers=8)
    share, made = accepted(target, f"easyspec:model={deep},group=1")
    assert share == 1.0 and made.draft.lanes.turns % 8 == 0


def test_after_a_round_the_cache_is_that_of_exact_passes_unless_it_is_not_calibrated(deep):
    for knobs, wrong in (("calibrate=true", nullcontext()), ("calibrate=false", pytest.raises(AssertionError))):
        made = plan(small_model(layers=8), draft=f"easyspec:model={deep},{knobs}")
        sequences = [Sequence(prompt, limit=40, context=64) for prompt in PROMPTS]
        with torch.inference_mode(), wrong:
            for _ in range(3):
                step(made, sequences)
                fresh(made.draft.lanes, made.draft.lanes.ids)


def test_attentions_alone_side_by_side_stay_nearer_than_whole_layers(deep):
    target = small_model(layers=8)
    shares = [accepted(target, f"easyspec:model={deep},group={knobs}")[0] for knobs in ("2", "2,ffn=beside")]
    assert shares[0] > shares[1]


def test_sampled_tokens_have_the_targets_law_with_real_groups(tmp_path):
    target, law, prompt = small_model(vocab=5, context=16, scale=1.0), Law.of(temperature=0.9), [1, 2, 3, 1]
    save(small_model(5, 16, 3, 4, 1.0), tmp_path / "model", dtype=torch.float64)
    made = plan(target, draft=f"easyspec:model={tmp_path / 'model'},tokens=2")
    counts_VV = torch.zeros(5, 5, dtype=torch.float64)
    for start in range(0, 2000, 500):
        batch = [Sequence(prompt, limit=2, context=16, law=law, seed=start + i) for i in range(500)]
        list(run(made, batch))
        for s in batch:
            counts_VV[tuple(s.tokens)] += 1
    assert chi_squared(counts_VV, joint_law(target, prompt, law)) < 77
