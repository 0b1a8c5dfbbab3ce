"""Tokens as the API shows them: their text, and their bytes where text cannot say them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence as Seq
from functools import cache
from typing import Any

from tokenizers import decoders

from lithe.model.tokenizer import Stream, Tokenizer
from lithe.serve.request import TokenLogprob

LEAST = -9999.0  # JSON has no infinity
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokens:
    """A vocabulary's bytes."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.names = {number: text for text, number in tokenizer.vocabulary.items()}
        self.special = set(tokenizer.backend.get_added_tokens_decoder())
        self.by_byte = isinstance(tokenizer.backend.decoder, decoders.ByteLevel)

    def bytes(self, token: int) -> bytes:
        """What a token adds to a text, its special name included; b"" for an id without a token."""
        name = self.names.get(token, "")
        if token in self.special:
            return name.encode()
        if self.by_byte:
            return b"".join(_letters().get(letter, letter.encode()) for letter in name)
        if found := BYTE.fullmatch(name):
            return bytes([int(found[1], 16)])
        return name.replace("▁", " ").encode()

    def text(self, token: int) -> str:
        """As OpenAI shows a token; one that is no whole character as bytes."""
        data = self.bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def chat(self, found: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        """Log probabilities in the shape of chat completions."""
        shown = lambda token, logprob: {"token": self.text(token), "logprob": finite(logprob), "bytes": list(self.bytes(token))}
        return [shown(one.token, one.logprob) | {"top_logprobs": [shown(*pair) for pair in one.top]} for one in found]

    def plain(self, found: Seq[TokenLogprob], offset: int) -> dict[str, Any]:
        """In the shape of plain completions. offset: of the first token in the text."""
        texts, offsets = [self.text(one.token) for one in found], []
        for one in found:
            offsets.append(offset)
            offset += len(self.bytes(one.token).decode(errors="ignore"))
        tops = [None if one.logprob is None else {self.text(token): finite(logprob) for token, logprob in one.top}
                for one in found]
        return {"tokens": texts, "token_logprobs": [None if one.logprob is None else finite(one.logprob) for one in found],
                "top_logprobs": tops, "text_offset": offsets}


def pieces(tokenizer: Tokenizer, prompt: Seq[int]) -> Any:
    """A function that tells the text each further token makes certain."""
    return Stream(tokenizer, prompt).push


def finite(logprob: float | None) -> float:
    return LEAST if logprob is None else max(logprob, LEAST)


@cache
def _letters() -> dict[str, bytes]:
    """GPT-2's letters for bytes: what prints stands for itself, the rest for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): bytes([byte]) for byte in plain} | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
