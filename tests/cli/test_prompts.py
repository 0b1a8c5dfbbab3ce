"""Prompt files: the kinds that are read, and what each broken one is told."""

import gzip
import json

import pytest

from lithe.cli._common import read_prompts
from lithe.errors import FormatError, UsageError


def lines(*records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


# Names of tests hold these bytes, and every process must collect the same names: so no clock in them.
PACKED = gzip.compress(lines({"prompt": "packed"}), mtime=0)
CUT = gzip.compress(lines({"prompt": "p"} | {str(i): i for i in range(99)}), mtime=0)[:-20]


@pytest.mark.parametrize(("name", "data", "prompts"), [
    ("a.txt", "Once upon\nÜber \n".encode(), ["Once upon", "Über "]),
    ("a.txt", b"one\r\ntwo\r\n\r\n", ["one", "two"]),
    ("a.txt", b"\xef\xbb\xbfone", ["one"]),
    ("a.jsonl", lines({"prompt": "p", "text": "t"}, {"text": "t"}, {"question": "q"}), ["p", "t", "q"]),
    ("a.jsonl", lines({"question_id": 1, "turns": ["first", "then"]}), ["first"]),
    ("a.jsonl", lines({"prompt": "a\nb "}), ["a\nb "]),
    ("a.jsonl.gz", PACKED, ["packed"]),
])  # fmt: skip
def test_prompts_are_read(tmp_path, name, data, prompts):
    (tmp_path / name).write_bytes(data)
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(("name", "data", "said"), [
    ("a.txt", b"", "holds no prompts"), ("a.txt", b"\n\n", "holds no prompts"), ("a.jsonl", b"", "holds no prompts"),
    ("a.txt", b"one\n\ntwo\n", "line 2: the prompt is empty"), ("a.txt", b"one\n \n", "line 2: the prompt is empty"),
    ("a.txt", b"one\nna\xefve\n", "line 2 is not UTF-8: byte 3 is 0xef"),
    ("a.jsonl", lines({"prompt": "p"}) + b"{'prompt': 1}\n", "line 2 is not JSON"),
    ("a.jsonl", b'{"prompt": "cut', "line 1 is not JSON"), ("a.jsonl", b'["p"]\n', "line 1 is not a JSON object"),
    ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ("a.jsonl", lines({"story": "s"}), "line 1 has none of the fields prompt, text, question, turns; it has story"),
    ("a.jsonl", lines({"prompt": 7}), "'prompt' holds no text"),
    ("a.jsonl", lines({"prompt": ""}), "line 1: the prompt is empty"),
    ("a.jsonl", lines({"turns": []}), "'turns' holds no text"), ("a.jsonl", lines({"turns": "abc"}), "'turns' holds no text"),
    ("a.jsonl", b'{"prompt": "\\ud800"}', "half a surrogate"),
    ("a.jsonl.gz", lines({"prompt": "p"}), "not a whole gzip file"),
    ("a.jsonl.gz", CUT, "not a whole gzip file"),
])  # fmt: skip
def test_broken_files_are_told(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=said):
        read_prompts(tmp_path / name)


def test_files_of_no_known_kind_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"read from \.txt"):
        read_prompts(tmp_path / "a.csv")
    with pytest.raises(UsageError, match="there is no prompts file"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(UsageError, match="cannot read prompts"):
        read_prompts(tmp_path / "b.txt")
