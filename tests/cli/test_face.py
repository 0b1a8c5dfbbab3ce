"""The Python face: lithe.load, generate, methods and bench, as the README and the docstrings show them."""

import subprocess
import sys

import pytest

import lithe
from lithe import registry
from lithe.contracts.draft import suited
from lithe.errors import LitheError, TooLargeError, UsageError
from tests.bench.folder import small_text_model
from tests.bench.methods import FOLLOWS, WARM, write
from tests.cli.folders import ROUND, spoken

DRAFTS = [suited(entry, small_text_model()) for entry in registry.entries("decode", "draft")]


@pytest.fixture(scope="module")
def model():
    return lithe.load(spoken())


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path, follows=FOLLOWS, warm=WARM)


def said(steps) -> str:
    return "".join(step.text for step in steps)


def test_it_offers_what_it_says():
    assert {"load", "generate", "methods", "bench"} <= {*lithe.__all__} <= {*dir(lithe)}
    assert all(callable(getattr(lithe, name)) for name in lithe.__all__)
    with pytest.raises(AttributeError, match=r"'lithe' has no attribute 'genrate'; it offers .*generate, load"):
        _ = lithe.genrate


def test_importing_it_and_listing_methods_import_no_torch():
    code = "import sys, lithe; lithe.methods(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("name", [spoken(), str(spoken()), "zoo:tiny-draft"], ids=["path", "text", "zoo"])
def test_a_model_is_loaded_by_path_or_name(name):
    model = lithe.load(name)
    assert model.source == str(name) and model.tokenizer is not None and not model.training
    assert model.folder.is_dir() and next(model.parameters()).dtype.is_floating_point


def test_a_prompt_is_text_or_ids_or_a_list_of_either(model):
    ids = [*ROUND.encode()]
    alone = said(lithe.generate(model, ROUND, max_tokens=6))
    assert alone == "aé€" == said(lithe.generate(model, ids, max_tokens=6))
    for batch in ([ROUND, "a"], [ids, [97]]):
        steps = list(lithe.generate(model, batch, max_tokens=6))
        first = steps[0].sequence
        assert said(s for s in steps if s.sequence is first) == alone
        assert said(s for s in steps if s.sequence is not first) == "é€😀"[:2] + "�"  # 6 bytes: 2, 3 and one of 4


@pytest.mark.parametrize("draft", [None, *DRAFTS], ids=lambda spec: str(spec).partition(":")[0].rpartition("/")[2])
def test_steps_tell_what_a_round_did(draft):
    model = small_text_model()
    steps = list(lithe.generate(model, "a fox saw a fox saw a", draft=draft, max_tokens=30))
    assert sum(len(step.tokens) for step in steps) == 30 and said(steps) == said(
        lithe.generate(model, "a fox saw a fox saw a", max_tokens=30))
    for step in steps:
        assert len(step.tokens) == len(step.sources) == len(step.pieces) <= step.nodes
        assert {"draft", "verify", "walk"} <= {*step.seconds}
    assert steps[-1].sequence.finished == "length"


def test_methods_of_ones_own_and_settings(model, mine):
    spec = f"{mine['follows']}:after=4"
    assert said(lithe.generate(model, ROUND * 2, draft=spec, max_tokens=12)) == ROUND + "a"
    sampled = lambda seed: said(lithe.generate(small_text_model(), "abc", warps=[mine["warm"]], seed=seed, max_tokens=12))
    assert sampled(1) == sampled(1) != sampled(2)
    assert said(lithe.generate(model, ROUND, stop=["€"])) == "aé"


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"draft": "nosuch"}, UsageError, "no method 'nosuch'"), ({"max_tokens": 0}, UsageError, "max_tokens must be at least 1"),
    ({"seed": 2**64}, UsageError, "does not fit into 64 bits"), ({"tempratur": 1.0}, UsageError, "no method 'tempratur'"),
    ({"prompt": ""}, UsageError, "the prompt is empty"), ({"prompt": []}, UsageError, "the prompt is empty"),
    ({"prompt": ["a", ""]}, UsageError, "the prompt is empty"), ({"prompt": [[97], []]}, UsageError, "the prompt is empty"),
    ({"prompt": [97, 999]}, UsageError, "token 999 is outside this model's vocabulary of 257"),
    ({"prompt": "a" * 96}, TooLargeError, "the model's context is 96"), ({"prompt": "\udcff"}, UsageError, "cannot be encoded"),
])  # fmt: skip
def test_errors_come_before_the_first_step(model, settings, error, message):
    """At the call, not at the first `next`: a generator that fails later is hard to find."""
    with pytest.raises(error, match=message):
        lithe.generate(model, **{"prompt": "a"} | settings)


def test_errors_have_one_base():
    with pytest.raises(LitheError):
        lithe.load("zoo:nothing")
    with pytest.raises(UsageError, match="there is no model folder"):
        lithe.load("no\0name")


def test_methods_are_listed_with_their_cards():
    assert {e.address for e in lithe.methods("decode", "draft")} == {e.address for e in registry.entries("decode", "draft")}
    assert all(e.summary and e.card.paper for e in lithe.methods())


def test_bench_returns_a_row_a_method(mine):
    rows = lithe.bench(small_text_model(), [mine["follows"]], ["a fox saw a fox", "the dog"], max_tokens=8)
    assert [row.method for row in rows] == ["plain", "follows"]
    assert rows[1].same == rows[1].of == 2 and rows[0].tokens == rows[1].tokens == 16
