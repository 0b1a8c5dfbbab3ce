"""On the shipped model: what the papers promise of texts and passes, on problems that it was not trained on."""

import numpy as np
import pytest
import torch

from lithe.bench.parallel._suite import Cell, Course, decoded, problems
from lithe.diffuse.plan import plan
from lithe.diffuse.schedule.halving_blocks import inner
from lithe.model.load import load

TASKS = ("copy", "reverse", "shuffle", "replace_random")


@pytest.fixture(scope="module")
def course():
    return Course(load("zoo:tiny-diffusion"))


def measured(course, method="", tasks=TASKS, problems=12, **settings):
    return [r.measured for r in course.run([Cell(task=t, method=method, problems=problems, **settings) for t in tasks])]


def total(found, name):
    return sum(np.sum(each[name]) for each in found)


def test_one_token_a_step_is_right(course):
    assert sum(each["right"].count("1") for each in measured(course)) >= 46  # of 48


@pytest.mark.parametrize("drafts", [2, 8])
def test_drafts_are_verified_in_fewer_passes(drafts):
    exact = Course(load("zoo:tiny-diffusion", dtype="fp64"))
    plain, own = measured(exact), measured(exact, f"freedave:drafts={drafts}")
    assert [each["texts"] for each in own] == [each["texts"] for each in plain]
    assert total(own, "passes") < 0.7 * total(plain, "passes") and total(own, "rows") > total(plain, "rows")


def test_neighbours_within_no_radius_are_the_threshold(course):
    own, threshold, wide = (measured(course, m) for m in ("localleap:radius=0", "confident", "localleap"))
    assert [(e["texts"], e["passes"]) for e in own] == [(e["texts"], e["passes"]) for e in threshold]
    assert total(wide, "passes") < total(threshold, "passes")


def test_agreement_that_may_add_nothing_is_one_token_a_step(course):
    assert [e["texts"] for e in measured(course, "ccd:expand=0,by=sure")] == [e["texts"] for e in measured(course)]


def test_ends_of_text_cut_a_canvas_that_is_too_long(course):
    whole, cut = (measured(course, f"equal_blocks:size=8{more}", ("copy", "reverse"), places=32)
                  for more in ("", " + end_of_text"))
    assert total(cut, "rows") < 0.9 * total(whole, "rows") and total(cut, "passes") <= total(whole, "passes")


def test_a_whole_canvas_is_filled_behind_its_end_and_a_cache_runs_fewer_rows(course):
    plain, kept, short = (measured(course, f"equal_blocks:size=8{more}", ("copy",), 6, places=40, whole=whole)[0]
                          for more, whole in (("", True), (" + dual_cache", True), ("", False)))
    assert plain["places"] == kept["places"] == 6 * 40 > short["places"]
    assert plain["right"] == kept["right"] == "1" * 6 and kept["rows"] < plain["rows"] / 2
    assert plain["passes"] == [40] * 6


def test_ascending_steps_take_the_logarithm_of_a_canvas(course):
    found = measured(course, "eoser:low=0.01,ascending=true", ("copy",), places=32)
    assert max(found[0]["passes"]) == 5


def test_ascending_steps_decide_a_block_each_where_blocks_halve(course):
    made = plan(course.model, "eoser:low=0.01,ascending=true + halving_blocks:blocks=5")
    cell = Cell(task="copy", method="", problems=1, places=32, whole=True)
    decoded(course.model, made, problems(cell), cell)
    canvas = made.runs[0].canvas
    steps = canvas.when_T[canvas.prompt :].tolist()
    assert steps == sorted(steps) and [steps.count(step) for step in dict.fromkeys(steps)] == [1, 2, 4, 8, 17]


@pytest.mark.parametrize("blocks, edges", [(1, []), (2, [15]), (3, [7, 15]), (9, [1, 3, 7, 15])])
def test_blocks_halve_from_right_to_left(blocks, edges):
    assert inner(32, blocks) == inner(24, blocks) == edges


def test_what_depends_on_nothing_is_sampled_at_once(course):
    every = {k: f"steady:tokens={k},by=chance + equal_blocks:size=6" for k in (1, 6)}
    copies, shuffles = (measured(course, every[6], (task,), 60, temperature=1.0, items=6)[0] for task in ("copy", "shuffle"))
    assert copies["right"].count("1") >= 58 and shuffles["right"].count("1") <= 6  # ideal: 60 and 0.9
    assert measured(course, every[1], ("shuffle",), 60, temperature=1.0, items=6)[0]["right"].count("1") >= 35


def test_rounds_hold_at_least_all_bits_over_the_most_of_a_round(course):
    for method in ("confident", "ete:ahead=0", "look_ahead"):
        made = plan(course.model, method)
        for task in ("shuffle", "insert_random"):
            cell = Cell(task=task, method=method, problems=8)
            decoded(course.model, made, problems(cell), cell)
            for each in made.runs:
                when, bits = each.canvas.when_T, -each.canvas.sure_T.log2()
                by_round = torch.zeros(int(when.max()) + 1, dtype=torch.float64).index_add_(0, when.clamp_min(0), bits)
                assert int(when.max()) >= float(by_round.sum() / by_round.max()) - 1e-9
