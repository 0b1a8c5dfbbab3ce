"""A second model that drafts: embeddings of unequal size, which families of one tokenizer have."""

import pytest

import lithe
from lithe.contracts.small import small_model
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import UnsupportedError
from lithe.sampling.law import Law
from tests.bench.methods import WARM
from tests.cli.folders import padded, spoken

UNKNOWN = 260  # a row of the padded embedding that no token of the tokenizer has


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    path = tmp_path_factory.mktemp("warm") / "warm.py"
    path.write_text(WARM)
    return Law.of(str(path))


@pytest.mark.parametrize(("target", "draft"), [(300, 257), (257, 300)])
@pytest.mark.parametrize("prompt", [[97], [97, 250, 97], [97, UNKNOWN], [UNKNOWN, 97], [UNKNOWN, *[97] * 68]])
def test_embeddings_may_be_padded_to_different_sizes(warm, target, draft, prompt):
    folders = {257: spoken(), 300: padded(300)}
    model = lithe.load(folders[target])
    if max(prompt) >= target:
        pytest.skip("the target does not know this token either")
    made = plan(model, draft=f"draft_model:model={folders[draft]}")
    batch = [request(model, ids, max_tokens=24) for ids in (prompt, [97])]
    list(run(made, batch))
    for sequence in batch:
        alone = request(model, sequence.ids[: sequence.prompt], max_tokens=24)
        list(run(plan(model), [alone]))
        assert sequence.tokens == alone.tokens
    alone = request(model, prompt, max_tokens=24)
    list(run(made, [alone]))  # rounds by one call, where that can be
    assert alone.tokens == batch[0].tokens
    known = max(prompt) < draft
    assert ("draft_model" in batch[0].sources) == known and "draft_model" in batch[1].sources
    sampled = request(model, prompt, law=warm, max_tokens=24)
    list(run(made, [sampled]))  # the draft's law is as wide as the target's, whatever reads it
    assert len(sampled.tokens) == 24


def test_a_twin_in_another_precision_drafts_and_a_model_without_a_name_has_none():
    model = lithe.load("zoo:tiny-draft")
    made = plan(model, draft="draft_model:model=self,dtype=int8")
    assert "int8" in repr(made.draft.second.model) and "int8" not in repr(model)
    alone, drafted = (request(model, "Once upon a time", max_tokens=24) for _ in range(2))
    passes = len(list(run(made, [drafted])))
    list(run(plan(model), [alone]))
    assert drafted.tokens == alone.tokens and passes < 12  # it is nearly always right
    with pytest.raises(UnsupportedError, match="no twin"):
        plan(small_model(), draft="draft_model:model=self")
