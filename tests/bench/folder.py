"""A whole model folder, tokenizer included, small enough to make in a test."""

import functools
import tempfile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from lithe.contracts.small import small_model
from lithe.model.checkpoint import save
from lithe.model.load import load

LETTERS = " abcdefghijklmnopqrstuvwxyz."


@functools.cache
def small_text_model(*, bos: bool = False, context: int = 64):
    """A random model that reads letters, with or without a token in front of every text."""
    return load(small_text_folder(bos=bos, context=context))


@functools.cache
def small_text_folder(*, bos: bool = False, context: int = 64) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lithe-")) / "model"
    save(small_model(context=context), folder)
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"<s>": len(LETTERS)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<s>"])
    if bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", len(LETTERS))])
    backend.save(str(folder / "tokenizer.json"))
    return folder
