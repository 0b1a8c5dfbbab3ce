"""Problems are judged by rule, and the closed forms hold under simulation."""

import numpy as np
import pytest

from lithe.bench.parallel import _tasks
from lithe.bench.parallel._tasks import CHOSEN, LINES, NUMBERS, RANDOM, SQUARES, TASKS, VOCABULARY, draw, one_shot


@pytest.mark.parametrize("task", TASKS)
def test_own_answers_are_right_and_changed_ones_wrong(task):
    for seed in range(50):
        problem = draw(task, np.random.default_rng(seed))
        assert problem.right(problem.answer)
        assert set(problem.prompt + problem.answer) <= set(VOCABULARY)
        wrong = [problem.answer[-1], *problem.answer[1:-1], problem.answer[0]]
        if task in (*CHOSEN, *NUMBERS) and wrong != problem.answer:
            assert not problem.right(wrong)
        assert not problem.right(problem.answer[:-1])
        assert not problem.right([*problem.answer, problem.answer[0]])


@pytest.mark.parametrize("task", LINES)
def test_every_line_has_to_be_right_and_closed(task):
    for seed in range(50):
        problem = draw(task, np.random.default_rng(seed))
        assert problem.right(problem.answer) and set(problem.prompt + problem.answer) <= set(_tasks.WIDER)
        lines = [line.split() for line in " ".join(problem.answer).split(_tasks.NEWLINE)[:-1]]
        assert 3 <= len(lines) <= 6 and len({len(line) for line in lines}) > 1 and len(problem.answer) <= _tasks.LINED
        assert len(problem.prompt) == _tasks.LINED + 3 + 2 * (task == "replace_lines")
        for i in range(len(lines)):
            wrong = [line[:-1] if k == i else line for k, line in enumerate(lines)]
            assert not problem.right([word for line in wrong for word in (*line, _tasks.NEWLINE)])
        assert not problem.right(problem.answer[:-1]) and not problem.right([*problem.answer, problem.answer[0]])
        if task not in ("shuffle_lines", "replace_lines"):
            at = problem.prompt.index(":") + 1
            given = [line.split() for line in " ".join(problem.prompt[at:-1]).split(_tasks.NEWLINE)[: len(lines)]]
            act = {"copy_lines": list, "reverse_lines": lambda line: line[::-1], "sort_lines": sorted}[task]
            assert [act(line) for line in given] == lines


def test_random_operations_take_every_right_answer():
    problem = draw("insert_random", np.random.default_rng(3))
    start = problem.prompt.index(":")
    items, new = [word for word in problem.prompt[start + 1 : -1] if word != "_"], problem.prompt[start - 1]
    assert all(problem.right([*items[:i], new, *items[i:]]) for i in range(len(items) + 1))
    assert not problem.right([*items, items[0]])
    assert len(SQUARES) == 576  # Latin squares of order 4


@pytest.mark.parametrize(("task", "sizes"), [
    ("shuffle", (6,)), ("shuffle", (3, 3)), ("replace_random", (6,)), ("replace_random", (2, 4))])  # fmt: skip
def test_closed_forms(task, sizes):
    dice, n, hits = np.random.default_rng(0), 6, 0
    for _ in range(4000):
        left, free, ok, done = list(range(n)), n, True, 0
        for size in sizes:
            if task == "shuffle":
                drawn = [left[dice.integers(len(left))] for _ in range(size)]
                ok &= len(set(drawn)) == size
                left = [x for x in left if x not in drawn]
            else:
                changed = sum(dice.random() < (1 / free if not done else 0) for _ in range(size))
                done += changed
                free -= size
        hits += ok if task == "shuffle" else done == 1
    assert abs(hits / 4000 - one_shot(task, n, sizes)) < 0.03


def test_random_names_are_the_tasks():
    assert set(RANDOM) < set(TASKS)
