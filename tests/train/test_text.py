"""Rows of data files: every form, what of them is learned, and every way they can be wrong."""

import gzip
import json

import pytest

from lithe.errors import FormatError, UsageError
from lithe.model.tokenizer import Tokenizer
from lithe.train.text import read
from tests.cli.folders import spoken

TEMPLATE = ("{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<a>{% endif %}")


@pytest.fixture
def tokenizer():
    """A token a byte, <end> after a text."""
    return Tokenizer(spoken(template=TEMPLATE))


@pytest.fixture
def write(tmp_path):
    def go(*lines, name="data.jsonl"):
        raw = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return tmp_path / name

    return go


def learned(found, tokenizer, i=0):
    ids, counted = found[i]
    return tokenizer.decode(ids, special=True), tokenizer.decode(ids[counted], special=True)


@pytest.mark.parametrize(("row", "whole", "part"), [
    ({"text": "abc"}, "abc<end>", "bc<end>"),
    ({"prompt": "ab", "completion": "cd"}, "abcd<end>", "cd<end>"),
    ({"prompt": "", "completion": "cd"}, "cd<end>", "d<end>"),
    ({"prompt": "€", "completion": "é"}, "€é<end>", "é<end>"),
    ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "?"},
                   {"role": "assistant", "content": "no"}]}, "<u>hi<a>yo<end><u>?<a>no<end>", "yo<end>no<end>"),
    ({"prompt": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "?"}],
      "completion": [{"role": "assistant", "content": "no"}]}, "<u>hi<a>yo<end><u>?<a>no<end>", "no<end>"),
    ({"instruction": "add", "input": "1 2", "output": "3"}, "<u>add\n\n1 2<a>3<end>", "3<end>"),
])  # fmt: skip
def test_each_form_learns_what_it_should(write, tokenizer, row, whole, part):
    found = read(write(row), tokenizer, context=64)
    assert learned(found, tokenizer) == (whole, part)


def test_everything_is_learned_where_that_is_asked(write, tokenizer):
    found = read(write({"prompt": "ab", "completion": "cd"}), tokenizer, context=64, everything=True)
    assert learned(found, tokenizer)[1] == "bcd<end>"


def test_alpaca_without_a_chat_template_stands_under_headings(write):
    found = read(write({"instruction": "add", "output": "3"}), Tokenizer(spoken(template=None)), context=64)
    assert learned(found, Tokenizer(spoken()))[0] == "### Instruction:\nadd\n\n### Response:\n3<end>"


def test_forms_mix_and_fields_that_are_not_read_are_told(write, tokenizer):
    rows = [{"text": "abc", "source": "x"}, {"prompt": "a", "completion": "b", "source": "y", "id": 3}]
    found = read(write(*rows, name="data.jsonl.gz"), tokenizer, context=64)
    assert found.forms == {"text": 1, "prompt/completion": 1}
    assert found.unread == {"source": 2, "id": 1}
    assert list(found.lengths) == [3, 2]


@pytest.mark.parametrize(("line", "said"), [
    (b'{"text": "ab', "not JSON"), (b'{"text": "\xff"}', "not UTF-8: byte 11 is 0xff"), (b"[1]", "a list"), (b"", "is empty"),
    (b"[" * 100_000, "not JSON"), ({"txt": "a"}, "has the fields txt"), ({"text": 3}, "must be text, not int"),
    ({"text": ""}, "'text' is empty"), ({"text": "\ud800"}, "half a surrogate"), ({"text": "a", "messages": []}, "read as"),
    ({"messages": []}, "list of messages"), ({"messages": [{"role": "user"}]}, "message 1 of 'messages' has no content"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no turn of the role assistant"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "must be text, not list"), ({"prompt": "a"}, "needs one of"),
    ({"prompt": "a", "completion": None}, "must be text, not NoneType"),
    ({"text": "x" * 65}, "has 66 tokens, more than the 64"),
    ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "'prompt' must be a list"),
])  # fmt: skip
def test_a_malformed_row_is_told_by_file_and_line(write, tokenizer, line, said):
    path = write({"text": "fine"}, line, {"text": "fine"})
    with pytest.raises(FormatError, match="line 2") as told:
        read(path, tokenizer, context=64)
    assert said in str(told.value) and str(path) in str(told.value)


def test_a_file_that_cannot_be_used_is_told(write, tokenizer, tmp_path):
    for path, kind, said in [(write(), FormatError, "no rows"), (tmp_path / "x.jsonl", UsageError, "no data file"),
                             (tmp_path / "x.txt", UsageError, ".jsonl"), (tmp_path, UsageError, ".jsonl")]:
        with pytest.raises(kind, match=said):
            read(path, tokenizer, context=64)
    whole = write({"text": "abc" * 50}, name="cut.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(FormatError, match="whole gzip"):
        read(tmp_path / "cut.jsonl.gz", tokenizer, context=999)


def test_a_long_row_is_cut_only_where_asked_and_not_to_nothing(write, tokenizer):
    found = read(write({"text": "x" * 99}, {"text": "y"}), tokenizer, context=64, cut=True)
    assert found.cut == 1
    assert list(found.lengths) == [64, 1]
    with pytest.raises(FormatError, match="line 1 has no token to learn within the context"):
        read(write({"prompt": "x" * 99, "completion": "y"}), tokenizer, context=64, cut=True)


def test_a_template_that_rewrites_earlier_turns_is_refused(write):
    last = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    turns = [{"role": role, "content": text} for text, role in zip("abcd", ("user", "assistant") * 2, strict=True)]
    with pytest.raises(FormatError, match="line 1: this model's chat template changes earlier turns"):
        read(write({"messages": turns}), Tokenizer(spoken(template=last)), context=64)
    with pytest.raises(FormatError, match="line 1 is a conversation, but this model has no chat template"):
        read(write({"messages": turns}), Tokenizer(spoken(template=None)), context=64)


def test_the_shipped_model_learns_its_own_turns(write):
    from lithe.model.load import resolve

    tokenizer = Tokenizer(resolve("zoo:tiny"))
    turns = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello there!"}]
    found = read(write({"messages": turns}), tokenizer, context=64)
    whole, part = learned(found, tokenizer)
    assert part == "Hello there!<|endoftext|>"
    assert whole == tokenizer.chat(turns, add_generation_prompt=False)
    assert list(found[0][0]) == tokenizer.encode(whole, bos=False)
