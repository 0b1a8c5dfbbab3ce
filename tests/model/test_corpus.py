"""Corpora: what they are read from, what is kept of them, and what is told where they cannot be read."""

import gzip
import json

import numpy as np
import pytest

import lithe
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model import corpus


@pytest.fixture
def tokenizer():
    return lithe.load("zoo:tiny-draft").tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LITHE_CACHE", str(tmp_path / "cache"))


def test_text_lines_and_their_compressed_twins_are_read_alike(tmp_path, tokenizer):
    text = "Once upon a time.\n" * 3
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    found = [corpus.load(str(tmp_path / name), tokenizer) for name in ("a.txt", "a.txt.gz", "a.jsonl")]
    assert all(one.ids.tolist() == tokenizer.encode(text, bos=False) for one in found) and len({one.key for one in found}) == 1


def test_long_texts_are_cut_at_line_ends_only(tmp_path, tokenizer, monkeypatch):
    text = "One two three.\n" * 50
    monkeypatch.setattr(corpus, "PIECE", 100)
    (tmp_path / "a.txt").write_text(text)
    assert tokenizer.decode(corpus.load(str(tmp_path / "a.txt"), tokenizer).ids.tolist()) == text


def test_what_was_worked_out_is_read_back_and_changes_with_the_corpus(tmp_path):
    made = []
    for ids in ([1, 2, 3], [1, 2, 3], [1, 2, 4]):
        np.save(tmp_path / "a.npy", np.array(ids))
        read = corpus.load(str(tmp_path / "a.npy"), None)
        kept = read.derived("doubled", lambda ids: made.append(1) or {"double": 2 * ids})
        assert kept["double"].tolist() == [2 * i for i in ids]
    assert len(made) == 2


def test_pythons_own_library_is_a_corpus(tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "_library", lambda: ["import this\n", "import that\n"])
    assert tokenizer.decode(corpus.load("python", tokenizer).ids.tolist()) == "import this\nimport that\n"


@pytest.mark.parametrize(("name", "data", "error"), [
    ("a.jsonl", b'{"text": 1}\n', FormatError), ("a.jsonl", b"{", FormatError), ("a.jsonl", b"[1]\n", FormatError),
    ("a.txt", b"\xff\xfe\xff", FormatError), ("a.txt.gz", b"no gzip", FormatError), ("a.npy", b"no array", FormatError)])
def test_what_cannot_be_read_is_told(tmp_path, tokenizer, name, data, error):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error):
        corpus.load(str(tmp_path / name), tokenizer)


def test_a_missing_file_and_a_missing_tokenizer_are_told(tmp_path):
    with pytest.raises(UsageError, match="no corpus"):
        corpus.load("nowhere.npy", None)
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    with pytest.raises(FormatError, match="no row of token ids"):
        corpus.load(str(tmp_path / "a.npy"), None)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UnsupportedError, match="no tokenizer"):
        corpus.load(str(tmp_path / "a.txt"), None)
