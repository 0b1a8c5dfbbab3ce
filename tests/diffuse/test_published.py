"""ParallelBench's rows as problems: renamed, judged by rule, and what cannot be asked told; an archive is not trusted."""

import json
import zipfile

import numpy as np
import pytest

from lithe.bench.ledger import Record
from lithe.bench.parallel._curves import curves, family
from lithe.bench.parallel._published import published
from lithe.bench.parallel._suite import cells, problems
from lithe.bench.parallel._tasks import WORDS, draw, listed
from lithe.errors import FormatError, UsageError

NAMES = ["Vera Ng", "Ann Bo", "Max Ode", "Cy Poe", "Zoe Abt", "Kit Dow", "Bea Wu"]


def row(answer, names=NAMES[:4], **more):
    said = json.dumps(answer) if isinstance(answer, list) else {"input": names, "example": json.dumps(answer["example"])}
    return json.dumps({"input": {"context": json.dumps(names), **more}, "answer": said})


def archive(path, files, home="output/test/"):
    with zipfile.ZipFile(path, "w") as made:
        for name, lines in files.items():
            made.writestr(f"{home}{name}.jsonl", "\n".join(lines) + "\n")
    return path


@pytest.fixture
def rows(tmp_path):
    four, new = NAMES[:4], NAMES[4]
    return archive(tmp_path / "p.zip", {
        "waiting_line/sort": [row(sorted(four))],
        "waiting_line/reverse": [row(four[::-1]), row(NAMES[::-1], NAMES), row(four)],  # too long; a wrong answer
        "waiting_line/shuffle": [row({"example": four[::-1]})],
        "waiting_line/insert_index": [row([*four, new], word=new, index=4), row([*four, new], word=new, index=9)],
        "waiting_line/replace_random": [row({"example": [new, *four[1:]]}, word=new)],
        "waiting_line/copy": [row([NAMES[0]] * 2, [NAMES[0]] * 2)],
        "puzzle/latin_square_n4": [json.dumps({"input": {"size": 4}, "answer": {
            "example": "H,4,A,C\n4,C,H,A\nC,A,4,H\nA,H,C,4"}})],
        "puzzle/sudoku_n4_12": [json.dumps({"input": {"sudoku": "0"}, "answer": "1"})],
        "words_to_sentence/easy": ["not even read"]})


def test_names_become_words_one_to_one_and_in_order(rows, tmp_path):
    found = published(rows)
    assert {name.rpartition("/")[2]: len(each) for name, each in found.problems.items()} == dict.fromkeys(
        ("latin_square_n4", "insert_index", "replace_random", "reverse", "shuffle", "sort"), 1)
    sort = found.problems["waiting_line/sort"][0]
    asked = sort.prompt[2:6]
    assert len(set(asked)) == 4 and set(asked) <= set(WORDS) and sort.prompt[6:] == ["_", "_", "="]
    assert np.argsort(asked).tolist() == np.argsort(NAMES[:4]).tolist()  # as the names stand to each other
    assert sort.right(sorted(asked)) and not sort.right(asked)
    insert = found.problems["waiting_line/insert_index"][0]
    assert insert.prompt[:1] + insert.prompt[3:5] == ["insert_index", "at", "4"]
    assert insert.right([*insert.prompt[6:10], insert.prompt[2]])
    assert found.problems["puzzle/latin_square_n4"][0].prompt == ["square", ":", *["_"] * 16, "="]
    (folder := tmp_path / "data").mkdir()
    zipfile.ZipFile(rows).extractall(folder)
    assert [p.prompt for each in published(folder).problems.values() for p in each] == [
        p.prompt for each in found.problems.values() for p in each]


def test_what_is_left_out_is_told(rows):
    left = published(rows).left_out
    assert dict(left["waiting_line/reverse"]) == {"lists of more than 6 names": 1,
                                                  "a published answer that the rule does not take": 1}
    assert "twice" in next(iter(left["waiting_line/copy"])) and "place" in next(iter(left["waiting_line/insert_index"]))
    assert "sentences" in next(iter(left["words_to_sentence/easy"])) and "no word" in next(iter(left["puzzle/sudoku_n4_12"]))


@pytest.mark.parametrize("line", ["[]", "{", "nonsense", '{"input": {"context": "[1, 2]"}, "answer": "[1, 2]"}',
                                  '{"input": {"context": 3}, "answer": "[]"}', '{"input": {"context": "[]"}}', "[" * 100_000],
                         ids=range(7))
def test_a_row_that_is_none_is_an_error_with_its_line(tmp_path, line):
    with pytest.raises(FormatError, match=r"waiting_line/copy\.jsonl line 2"):
        published(archive(tmp_path / "p.zip", {"waiting_line/copy": [row(NAMES[:3], NAMES[:3]), line]}))


def test_an_archive_is_not_trusted(tmp_path, rows):
    (tmp_path / "no.zip").touch()
    for path in (tmp_path / "no.zip", archive(tmp_path / "other.zip", {"x/y": ["{}"]}, "../")):
        with pytest.raises(UsageError, match="parallel_bench_data"):
            published(path)
    torn = tmp_path / "torn.zip"
    data = bytearray(rows.read_bytes())
    at = data.index(b'{"input"')
    data[at : at + 8] = b"#" * 8
    torn.write_bytes(data)
    with pytest.raises(FormatError, match="cannot be read"):
        published(torn)


def test_published_rows_are_cells_of_a_suite(rows):
    given = published(rows).problems
    asked = list(cells(["waiting_line/sort", "copy"], [""], 5, given=given))
    assert [cell.problems for cell in asked] == [1, 5]
    assert problems(asked[0], given)[0].task == "sort"
    with pytest.raises(UsageError, match="no task"):
        list(cells(["waiting_line/sort"], [""], 5))
    assert len(problems(asked[1], given)) == 5


def test_forms_of_drawn_problems_are_those_of_given_ones():
    for task in ("copy", "sort", "replace_index", "remove_random", "insert_random", "shuffle"):
        for seed in range(20):
            drawn = draw(task, np.random.default_rng(seed), 4)
            start = drawn.prompt.index(":") + 1
            new = drawn.prompt[2] if "with" in drawn.prompt else ""
            at = int(drawn.prompt[drawn.prompt.index("at") + 1]) if "at" in drawn.prompt else 0
            made = listed(task, drawn.prompt[start : start + 4], new, at, drawn.answer)
            assert made.prompt == drawn.prompt and made.right(drawn.answer)
            assert not made.right([*drawn.answer, "ant"])


def record(method, right, passes, task="copy"):
    return Record(suite="parallel", model="m", model_hash=None, method=method, settings={"task": task}, prompts_hash="",
                  code_hash="", machine={}, device="cpu", precision="fp32", threads=1, torch="", lithe="", commit=None,
                  measured={"right": right, "passes": passes})


def test_curves_of_accuracy_against_speed():
    assert family("steady:tokens=2,by=chance") == family("steady:tokens=4,by=chance") == "steady:by=chance"
    assert family("confident") == family("confident:floor=0.7") == "confident"
    found = curves([record("plain", "1111", [8] * 4), record("steady", "1111", [4] * 4),
                    record("steady:tokens=4", "0000", [2] * 4), record("alone", "1111", [1] * 4)])
    assert [(c.task, c.family) for c in found] == [("copy", "steady")]
    assert found[0].points == [(1, 1), (2, 1), (4, 0)] and found[0].keeps == (2, 2, 2)
    assert found[0].area == pytest.approx((1 + 1) / 7)  # whole from 1 to 2, then falling to 4, nothing up to 8
