"""The shipped models answer the problems they were made for, each by its own loop."""

from functools import cache

import pytest

import lithe
from lithe.bench.parallel._ar import Rival
from lithe.bench.parallel._suite import Cell, Course

MODELS = {"tiny-diffusion": "full", "tiny-diffusion-long": "full", "tiny-diffusion-moe": "full",
          "tiny-block": "blocks", "tiny-ar": "causal"}
SURE = ("copy", "reverse", "sort", "remove_index", "insert_random")


@cache
def course(name: str) -> Course:
    model = lithe.load(f"zoo:{name}")
    return (Rival if model.config.attends == "causal" else Course)(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_small_and_right(name):
    model = course(name).model
    assert model.config.attends == MODELS[name] and (model.folder / "model.safetensors").stat().st_size < 2 << 20
    found = course(name).run([Cell(task=task, method="", problems=12) for task in SURE])
    right = {record.settings["task"]: record.measured["right"].count("1") for record in found}
    assert min(right.values()) >= 9 and sum(right.values()) >= 54, right  # of 12 each, of 60
    assert all(record.measured["rows"] >= sum(record.measured["passes"]) for record in found)


def test_a_rival_needs_a_pass_a_word_and_a_draft_fewer():
    plain, drafted, none = course("tiny-ar").run([Cell(task="copy", method=method, problems=12)
                                                  for method in ("", "prompt_lookup", "confident")])
    assert plain.measured["passes"] == [1 + words for words in plain.measured["tokens"]]  # its words and the end
    assert drafted.measured["right"] == plain.measured["right"]  # the same text
    assert sum(drafted.measured["passes"]) < sum(plain.measured["passes"])
    assert "error" in none.measured  # a policy of canvases is none of its drafts


def test_fewer_experts_run_where_they_are_shared():
    free, shared = course("tiny-diffusion-moe").run([Cell(task="copy", method=method, problems=6) for method in ("", "des")])
    assert 0 < shared.measured["experts"] < free.measured["experts"]


def test_a_model_of_blocks_goes_block_by_block():
    found = course("tiny-block").run([Cell(task="reverse", method="confident:floor=0.5", problems=12)])[0]
    assert min(found.measured["passes"]) >= 2  # 8 places are two blocks at least, three where the prompt ends within one
    assert sum(found.measured["passes"]) < 8 * 12 and found.measured["right"].count("1") >= 9
