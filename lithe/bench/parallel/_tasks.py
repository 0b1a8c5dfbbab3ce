"""Tasks in miniature after ParallelBench: lists, sums and squares, drawn from a seed and judged by rule.

A prompt is a form, `operation arguments : items =`, whose list has room for 6 words and whose numbers for 3 digits: what is
not filled holds `_`, so that an answer stands at the same place for lists of any length. Random operations have many right
answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

Words = list[str]
WORDS = ["ant", "bear", "cat", "deer", "elk", "fox", "goat", "hen", "ibex", "jay", "kite", "lion", "mole", "newt", "owl", "pig"]
DIGITS = list("0123456789")
CHOSEN = ("copy", "reverse", "sort", "replace_index", "insert_index", "remove_index")
RANDOM = ("shuffle", "replace_random", "insert_random", "remove_random")
NUMBERS = ("add", "addr")
TASKS = (*CHOSEN, *RANDOM, *NUMBERS, "square")
LINES = tuple(f"{kind}_lines" for kind in ("copy", "reverse", "sort", "replace", "shuffle"))  # done to each of several lines
MARKS = [":", "=", "+", "_", "with", "at"]
LONGEST, WIDTH = 6, 3  # words of a list and digits of a number that a form has room for
SQUARE = 17  # places of a square and an end
END, OPEN = "<end>", "<mask>"
LINED, NEWLINE = 40, "\n"  # places of several lines, each closed by a newline, that a form has room for
VOCABULARY = [END, OPEN, *TASKS, *MARKS, *DIGITS, *WORDS]
WIDER = [*VOCABULARY, *LINES, NEWLINE]  # of models that know lines


@dataclass(frozen=True)
class Problem:
    """One question: what is asked, one right answer, and the rule that judges any."""

    task: str
    prompt: Words
    answer: Words
    right: Callable[[Sequence[str]], bool]


def room(task: str) -> int:
    """How many places hold every answer of a task and an end of text."""
    if task in LINES:
        return LINED + 1
    return SQUARE if task == "square" else LONGEST + 2


def draw(task: str, dice: np.random.Generator, items: int | None = None) -> Problem:
    """A problem of a task; items: length of the list (3 to 6 where not said) or of the numbers (2 or 3), or lines (3 to 6)."""
    if task in LINES:
        return _lines(task, dice, items or int(dice.integers(3, LONGEST + 1)))
    if task == "square":
        return _square(dice)
    if task in NUMBERS:
        return _sum(task, dice, items or int(dice.integers(2, WIDTH + 1)))
    return _list(task, dice, items or int(dice.integers(3, LONGEST + 1)))


def _exactly(answer: Words) -> Callable[[Sequence[str]], bool]:
    return lambda said: list(said) == answer


def _list(task: str, dice: np.random.Generator, n: int) -> Problem:
    drawn = [WORDS[i] for i in dice.choice(len(WORDS), n + 1, replace=False)]
    items, new = drawn[:n], drawn[n]
    at, order = int(dice.integers(n)), list(items)
    while task == "shuffle" and order == items:
        order = [items[i] for i in dice.permutation(n)]
    if task == "insert_random":
        at = int(dice.integers(n + 1))
    return listed(task, items, new, at, order)


def listed(task: str, items: Words, new: str = "", at: int = 0, order: Words | None = None) -> Problem:
    """A list operation as a form. at: the place that is asked for, or that of the answer shown; order: a shuffled list."""
    kind, _, where = task.partition("_")
    changed: Callable[[int], Words] | None = {
        "replace": lambda i: [*items[:i], new, *items[i + 1 :]], "insert": lambda i: [*items[:i], new, *items[i:]],
        "remove": lambda i: [*items[:i], *items[i + 1 :]]}.get(kind)
    if changed is None:
        answer = {"copy": items, "reverse": items[::-1], "sort": sorted(items), "shuffle": order or items}[kind]
        right = [answer]
    else:
        places = [at] if where == "index" else range(len(items) + (kind == "insert"))
        answer, right = changed(at), [changed(i) for i in places]
    rule = lambda said: list(said) in right
    if task == "shuffle":
        rule = lambda said: sorted(said) == sorted(items) and list(said) != items
    more = [*(["with", new] if kind in ("replace", "insert") else []), *(["at", DIGITS[at]] if where == "index" else [])]
    return Problem(task, [task, *more, ":", *items, *["_"] * (LONGEST - len(items)), "="], answer, rule)


def _lines(task: str, dice: np.random.Generator, count: int) -> Problem:
    """Lines of 2 to 9 words, not all of one length; what is done to each may come out one way or many."""
    lengths = dice.integers(2, 10, count)
    while sum(lengths) + count > LINED or len(set(lengths)) == 1:
        lengths = dice.integers(2, 10, count)
    drawn = [[WORDS[i] for i in dice.choice(len(WORDS), int(n) + 1, replace=False)] for n in lengths]
    new = drawn[0].pop()
    each = [[word for word in line if word != new][: int(n)] for line, n in zip(drawn, lengths, strict=True)]
    done = [_done(task, line, new, dice) for line in each]
    told = [word for line in each for word in (*line, NEWLINE)]
    more = ["with", new] if task == "replace_lines" else []
    prompt = [task, *more, ":", *told, *["_"] * (LINED - len(told)), "="]
    return Problem(task, prompt, [word for line in done for word in (*line, NEWLINE)], lined(task, each, new))


def _done(task: str, line: Words, new: str, dice: np.random.Generator) -> Words:
    """A line as one right answer has it."""
    if task == "replace_lines":
        at = int(dice.integers(len(line)))
        return [*line[:at], new, *line[at + 1 :]]
    order = line
    while task == "shuffle_lines" and order == line:
        order = [line[i] for i in dice.permutation(len(line))]
    return {"reverse_lines": line[::-1], "sort_lines": sorted(line)}.get(task, order)


def lined(task: str, each: Sequence[Words], new: str = "") -> Callable[[Sequence[str]], bool]:
    """The rule of several lines: every line has to be right, and closed."""

    def one(said: Words, line: Words) -> bool:
        if task == "replace_lines":
            return len(said) == len(line) and [b for a, b in zip(line, said, strict=True) if a != b] == [new]
        if task == "shuffle_lines":
            return said != line and sorted(said) == sorted(line)
        return said == {"copy_lines": line, "reverse_lines": line[::-1], "sort_lines": sorted(line)}[task]

    def right(said: Sequence[str]) -> bool:
        got = " ".join(said).split(NEWLINE)
        return len(got) == len(each) + 1 and not got[-1] and all(one(a.split(), b) for a, b in zip(got, each, strict=False))

    return right


def _sum(task: str, dice: np.random.Generator, digits: int) -> Problem:
    """Written from the first digit (every carry runs against the text) or, addr, from the last."""
    a, b = (int(x) for x in dice.integers(0, 10**digits, 2))
    turn = -1 if task == "addr" else 1
    write = lambda number, width: list(str(number).zfill(width))[::turn]
    answer = write(a + b, WIDTH + 1)
    return Problem(task, [task, ":", *write(a, WIDTH), "+", *write(b, WIDTH), "="], answer, _exactly(answer))


SQUARES = [rows for rows in permutations(list(permutations("1234")), 4)
           if all(len({row[c] for row in rows}) == 4 for c in range(4))]


def _square(dice: np.random.Generator) -> Problem:
    """A 4 x 4 Latin square with 8 cells open; several squares may fit."""
    whole = [cell for row in SQUARES[int(dice.integers(len(SQUARES)))] for cell in row]
    hidden = set(dice.choice(16, 8, replace=False).tolist())
    return squared(["_" if i in hidden else cell for i, cell in enumerate(whole)], whole)


def squared(given: Words, whole: Words) -> Problem:
    """A Latin square to fill, cells row by row, `_` where one is open; whole: a square that fits."""

    def right(said: Sequence[str]) -> bool:
        rows = [said[i : i + 4] for i in range(0, 16, 4)]
        lines = [*rows, *zip(*rows, strict=True)] if len(said) == 16 else []
        fits = all(a in ("_", b) for a, b in zip(given, said, strict=False))
        return bool(lines) and fits and all(sorted(line) == list("1234") for line in lines)

    return Problem("square", ["square", ":", *given, "="], whole, right)


def one_shot(task: str, items: int, sizes: Sequence[int]) -> float:
    """The chance that a random operation comes out right when places are drawn from ideal marginals, `sizes` at a time.

    sizes add up to the list's length (spec of ParallelBench, theory; verified by simulation in the tests).
    """
    left, chance = items, 1.0
    if task == "shuffle":
        for size in sizes:
            for j in range(size):
                chance *= (left - j) / left
            left -= size
        return chance
    if task != "replace_random":
        raise ValueError(f"no closed form is known here for {task}")
    done, undecided = 0.0, 1.0
    for size in sizes:
        q = 1 / left
        done, undecided = done + undecided * size * q * (1 - q) ** (size - 1), undecided * (1 - q) ** size
        left -= size
    return done
