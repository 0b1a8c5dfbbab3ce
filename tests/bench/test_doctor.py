"""The doctor finds what was planted, where it was planted, and tells ties from lies."""

import copy

import pytest
import torch

from lithe.bench import doctor
from lithe.contracts.small import small_model
from lithe.errors import UsageError
from tests.bench.methods import FOLLOWS, LOSSY, SHORT, write

PROMPTS = [[1, 2, 3, 1, 2], [4, 5]]


def plain(model, prompt, tokens):
    """Greedy decoding with no cache and no loop."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path, follows=FOLLOWS, lossy=LOSSY, short=SHORT)


def test_a_lossless_method_is_proven_so(mine):
    seen = []
    found = doctor.diagnose(small_model(), mine["follows"], PROMPTS, max_tokens=20, progress=lambda *at: seen.append(at))
    assert found.identical and found.lossless and (found.same, found.prompts, found.tokens) == (2, 2, 40)
    assert 0 < found.noise < 1e-10 and found.dtype == "float64" and found.promises == ("same_tokens", "same_law")
    assert seen == [(1, 2), (2, 2)]


def test_a_planted_divergence_is_found_at_its_position_with_its_margin(mine):
    """The draft changes the fifth token behind the loop's back, so the sixth is the first that follows another text."""
    model, prompt = small_model(), PROMPTS[0]
    truth = plain(model, prompt, 6)
    false = [*truth[:-2], (truth[-2] + 1) % 7]
    logits = model(torch.tensor([truth[:-1]])).logits[0, -1]
    best = logits.topk(2).values.tolist()
    (difference,) = doctor.diagnose(model, mine["lossy"], [prompt], max_tokens=12).differences
    assert (difference.prompt, difference.position) == (0, 5)
    assert (difference.plain, difference.method) == (truth[-1], plain(model, false, 1)[-1])
    assert difference.margin == pytest.approx(best[0] - best[1]) and not difference.is_noise
    assert difference.plain_text == f"#{truth[-1]}"


def test_a_text_that_only_ends_early_differs(mine):
    found = doctor.diagnose(small_model(), mine["short"], PROMPTS, max_tokens=9)
    assert [d.position for d in found.differences] == [8, 8] and not found.lossless and found.same == 0
    assert all(d.method is None and d.margin is None for d in found.differences)


def test_a_tie_below_the_noise_is_called_a_tie(mine, monkeypatch):
    monkeypatch.setattr(doctor, "noise", lambda model, ids, rows: 1e3)
    found = doctor.diagnose(small_model(), mine["lossy"], PROMPTS, max_tokens=12)
    assert found.differences and found.lossless and not found.identical
    assert found.json()["differences"][0]["is_noise"] and found.json()["lossless"]


def test_noise_grows_as_precision_shrinks_and_is_none_where_passes_are_alike():
    ids = [int(i) for i in torch.randint(0, 32, (60,), generator=torch.Generator().manual_seed(0))]
    coarse = copy.deepcopy(small_model()).float()
    assert doctor.noise(small_model(), ids, 8) < 1e-10 < doctor.noise(coarse, ids, 8) < 1e-2
    assert doctor.noise(small_model(), ids[:1], 8) == 0


def test_ctrl_c_keeps_what_was_examined(mine):
    def press(done, total):
        raise KeyboardInterrupt

    found = doctor.diagnose(small_model(), mine["follows"], PROMPTS, max_tokens=5, progress=press)
    assert found.interrupted and found.prompts == 1


def test_no_prompts_prove_nothing(mine):
    with pytest.raises(UsageError, match="no prompts"):
        doctor.diagnose(small_model(), mine["follows"], [])
