"""Compressed models decode with every draft, and what comes out is what each gives by plain decoding."""

from functools import cache

import pytest

from lithe import recipe, registry
from lithe.compress.run import compress
from lithe.contracts.compressing import text
from lithe.contracts.draft import suited, texts
from lithe.contracts.small import small_model
from lithe.decode.plan import plan
from lithe.model.checkpoint import save
from lithe.model.load import load

DRAFTS = [entry for entry in registry.entries("decode", "draft") if "same_tokens" in entry.card.promises]
KINDS = {"cut": ["wanda_sp:unit=width,ratio=0.4,multiple=8 + ranked"],
         "zeros and pairs": ["wanda:ratio=0.5", "pela:ratio=0.3,sites=mlp.*"],
         "cut and packed": ["shortgpt:unit=half,ratio=0.2", "gptq:bits=4"]}
PROMPTS = ([2, 9, 2, 9, 2], list(range(20)))


@cache
def made(kind):
    model = compress(small_model(), KINDS[kind], text()).model
    return model, texts(plan(model), PROMPTS, 20)


@pytest.mark.parametrize("entry", DRAFTS, ids=[entry.name for entry in DRAFTS])
def test_drafts_change_no_token_of_a_compressed_model(entry):
    for kind in KINDS:
        model, plain = made(kind)
        assert texts(plan(model, draft=suited(entry, model)), PROMPTS, 20) == plain, f"{kind}: {entry.name} changes the text"


def test_compressing_changes_the_text():
    dense = texts(plan(small_model()), PROMPTS, 20)
    assert all(made(kind)[1] != dense for kind in KINDS)


def test_a_compressed_twin_drafts_for_the_model_it_was_made_from(tmp_path):
    dense = small_model()
    plain = texts(plan(dense), PROMPTS, 20)
    for kind in ("cut", "zeros and pairs"):
        save(made(kind)[0], tmp_path / kind)
        assert texts(plan(dense, draft=f"draft_model:model={tmp_path / kind}"), PROMPTS, 20) == plain
    cut = load(tmp_path / "cut", dtype="float64", fast=False)  # and rounded to int8, for itself
    assert texts(plan(cut, draft=recipe.read("twin", "draft")["draft"]), PROMPTS, 20) == made("cut")[1]
