"""The shipped tokenizer gives every text back, whatever it holds."""

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer

import lithe

WORDS = {"tiny-diffusion", "tiny-diffusion-long", "tiny-diffusion-moe", "tiny-block", "tiny-ar"}  # a few words, and no text
SHIPPED = (Path(lithe.__file__).parent / "zoo").glob("*/tokenizer.json")
FOLDERS = sorted(path for path in SHIPPED if path.parent.name not in WORDS)
SPECIALS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|mask|>")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.parent.name)
def tokenizer(request):
    return Tokenizer.from_file(str(request.param))


def test_there_are_shipped_tokenizers_and_they_are_one():
    assert FOLDERS
    assert len({path.read_bytes() for path in FOLDERS}) == 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


HARD = ("", "\n\n  x\t", "1234567 a1b2", "naïve Ωmega 漢字 🦊👩\u200d👧", "".join(map(chr, range(256))), "<|user|>hi<|mask|>")


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_ids_are_4096_with_the_specials_first_and_single_digits(tokenizer):
    assert tokenizer.get_vocab_size() == 4096
    assert [tokenizer.token_to_id(special) for special in SPECIALS] == [0, 1, 2, 3]
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c.isascii() and c.isdigit() for c in token)]
