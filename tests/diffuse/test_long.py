"""The model of long canvases and several lines: what it writes, and where blocks that follow lines end."""

import pytest

from lithe.bench.parallel._suite import Cell, Course, ask, problems
from lithe.bench.parallel._tasks import NEWLINE, room
from lithe.diffuse.loop import run
from lithe.diffuse.plan import plan
from lithe.model.load import load


@pytest.fixture(scope="module")
def course():
    return Course(load("zoo:tiny-diffusion-long"))


def one(course, task, method="", problems=6, **settings):
    return course.run([Cell(task=task, method=method, problems=problems, **settings)])[0].measured


def test_it_is_small_and_its_lines_are_lines(course):
    model = course.model
    assert (model.folder / "model.safetensors").stat().st_size < 1 << 20
    problem = problems(Cell(task="copy_lines", method="", problems=1))[0]
    ids = model.tokenizer.encode(" ".join(problem.prompt), bos=False)
    assert len(ids) == len(problem.prompt) and model.tokenizer.decode([ids[problem.prompt.index(NEWLINE)]]).strip(" ") == "\n"


@pytest.mark.parametrize("task", ["copy", "copy_lines"])
@pytest.mark.parametrize("places", [0, 256])
def test_it_is_right_on_canvases_of_any_length(course, task, places):
    assert one(course, task, "confident", places=places)["right"].count("1") >= 5


class Watched:
    """A schedule whose blocks are noted: one past the last place of each, from the answer's first."""

    def __init__(self, inner, ends):
        self.inner, self.ends = inner, ends

    def next(self, canvas, ask):
        start, end = yield from self.inner.next(canvas, ask)
        self.ends.append(end - canvas.prompt)
        return start, end


def ends(model, spec, asked):
    """For each problem, where the blocks of its canvas end."""
    made, found = plan(model, spec), [[] for _ in asked]
    turns, kit = iter(found), made.kit

    def watched():
        own = kit()
        own.schedule = Watched(own.schedule, next(turns))
        return own

    made.kit = watched
    list(run(made, [ask(model, problem.prompt, room(problem.task), None, i) for i, problem in enumerate(asked)]))
    return found


def test_blocks_end_with_lines_where_a_delimiter_is_foretold(course):
    asked = problems(Cell(task="copy_lines", method="", problems=8))
    fits = lambda spec: [problem.answer[end - 1] == NEWLINE for problem, each in zip(asked, ends(course.model, spec, asked),
                                                                                     strict=True)
                         for end in each if end <= len(problem.answer)]
    own, equal = (fits(f"confident + adablock:size=8,floor={floor}") for floor in (0.3, 2))
    assert sum(own) >= 0.9 * len(own) and len(own) >= 24  # three lines a problem at least
    assert sum(equal) < 0.5 * len(equal)


def test_without_a_delimiter_blocks_are_equal_ones(course):
    own, plain = (one(course, "shuffle_lines", f"confident:floor=0.7 + {blocks}")
                  for blocks in ("adablock:size=8,floor=2", "equal_blocks:size=8"))
    assert (own["texts"], own["passes"]) == (plain["texts"], plain["passes"])
