"""How well a model predicts a text. Axes: B = 1 window, T tokens, V vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence as Seq
from dataclasses import asdict, dataclass
from math import isfinite, log
from pathlib import Path
from typing import Any

import torch

from lithe.errors import FormatError, LitheError, UsageError
from lithe.model.cache import PlainCache
from lithe.model.decoder import NONE, Decoder
from lithe.model.load import vocabulary_mismatch

CELLS = 2**24  # logits held at a time, in numbers: bounds memory whatever the vocabulary


@dataclass(frozen=True, kw_only=True)
class Score:
    """nll: nats per scored token. bits_per_byte: all nats over ln 2 and the UTF-8 bytes of what was scored."""

    nll: float
    tokens: int
    bits_per_byte: float
    bytes: int
    documents: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def documents(path: str | Path) -> list[str]:
    """Texts of a file: `.txt` is one; `.jsonl` holds one a line, in its field "text". Raises UsageError or FormatError."""
    path = Path(path).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"{path}: texts are read from .txt (one text) or .jsonl files (one a line, in its field \"text\")")
    try:
        whole = path.read_bytes().decode("utf-8-sig")
    except OSError as problem:
        raise UsageError(f"cannot read {path}: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise FormatError(f"{path} is not UTF-8: byte {problem.start + 1} is {problem.object[problem.start]:#04x}") from None
    if path.suffix == ".txt":
        return [whole]
    return [_text_of(line, f"{path}, line {number}") for number, line in enumerate(whole.split("\n"), 1) if line.strip()]


def _text_of(line: str, where: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{where} is not JSON: {problem}") from None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise FormatError(f"{where} has no field \"text\" that holds a text")
    return found["text"]


def evaluate(model: Decoder, documents: Seq[str], *, context: int | None = None,
             progress: Callable[[int, int], None] | None = None) -> Score:
    """Score texts, each on its own, in windows of the model's context (or fewer tokens) that overlap by half.

    Every token is scored once, with at least half a window before it where the text has that much. Where the tokenizer begins a
    text with a token of its own (BOS), every window begins with it, and it is not scored. Where it does not, nothing can
    predict a text's first token, so neither its nats nor its bytes count. progress: called with tokens done and in all.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UsageError("this model has no tokenizer, so it cannot read a text")
    context = context or model.config.context
    if not 4 <= context <= model.config.context:
        raise UsageError(f"a window must have 4 to {model.config.context} tokens, this model's context; not {context}")
    texts = [tokenizer.encode(document) for document in documents]
    bos = tokenizer.prefix  # every text that it encodes begins so
    total = sum(max(len(ids) - max(len(bos), 1), 0) for ids in texts)
    nats, tokens = 0.0, 0
    for ids in texts:
        for found, count in score(model, ids[len(bos):], bos=bos, context=context):
            nats, tokens = nats + found, tokens + count
            if progress is not None:
                progress(tokens, total)
    if not tokens:
        raise FormatError("the text has no token that could be scored")
    if not isfinite(nats):
        raise LitheError(f"the model's loss on this text is {nats}: its logits overflow in {model.dtype}")
    whole = sum(len(document.encode("utf-8", "surrogatepass")) for document in documents)
    size = whole - (0 if bos else sum(_first_bytes(tokenizer.decode(ids[:1], special=True)) for ids in texts))
    return Score(nll=nats / tokens, tokens=tokens, bits_per_byte=nats / log(2) / max(size, 1), bytes=size, documents=len(texts))


def score(model: Decoder, ids: Seq[int], *, bos: Seq[int] = (), context: int) -> Iterator[tuple[float, int]]:
    """Nats and tokens scored of each window of a text. Without `bos` its first token is not scored."""
    for first, start, stop in windows(len(ids), context + 1 - len(bos), given=bool(bos)):  # + 1: the last token is no input
        yield _nats(model, [*bos, *ids[start:stop]], stop - first), stop - first


@torch.inference_mode()
def divergence(model: Decoder, dense: Decoder, documents: Seq[str], *, context: int | None = None) -> float:
    """KL from a dense model's laws to a model's, in nats a token, over the windows that `evaluate` scores.

    Raises UsageError where the two do not read alike.
    """
    if problem := vocabulary_mismatch(model, dense):
        raise UsageError(f"the two models cannot be compared: {problem}")
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UsageError("this model has no tokenizer, so it cannot read a text")
    total, tokens, bos = 0.0, 0, tokenizer.prefix
    size = min(context or model.config.context, model.config.context, dense.config.context)
    for document in documents:
        ids = tokenizer.encode(document)[len(bos):]
        for first, start, stop in windows(len(ids), size + 1 - len(bos), given=bool(bos)):
            rows = [*bos, *ids[start : stop - 1]]
            both = (dense, model)
            hidden = [one(torch.tensor([rows], device=one.device), logits=NONE).hidden[0, first - stop:] for one in both]
            for at in range(0, stop - first, step := max(1, CELLS // model.config.vocab)):
                logp, found = (one.head(h[at : at + step]).float().log_softmax(-1)
                               for one, h in zip(both, hidden, strict=True))
                total += float((logp.exp() * (logp - found.to(logp.device))).sum())
            tokens += stop - first
    if not tokens:
        raise FormatError("the text has no token that could be scored")
    return total / tokens


def windows(tokens: int, size: int, *, given: bool) -> Iterator[tuple[int, int, int]]:
    """Windows of a text as (first token scored, start, stop): half of each but the first is only read.

    given: whether something stands before the text, so that its first token can be scored.

    >>> list(windows(10, 6, given=False))
    [(1, 0, 6), (6, 3, 9), (9, 6, 10)]
    """
    first, start = 0 if given else 1, 0
    while first < tokens:
        stop = min(start + size, tokens)
        yield first, start, stop
        first, start = stop, stop - size // 2


@torch.inference_mode()
def _nats(model: Decoder, ids: list[int], last: int) -> float:
    """Negative log-likelihood of the last tokens of a window, given all before each."""
    ids_BT = torch.tensor([ids], device=model.device)
    cache = None if model.fast is None else PlainCache.like(model, capacity=len(ids))  # compiled layers need one
    hidden_TC = model(ids_BT[:, :-1], cache=cache, logits=NONE).hidden[0, -last:]
    wanted_T, rows = ids_BT[0, -last:], max(1, CELLS // model.config.vocab)
    total = 0.0
    for at in range(0, last, rows):  # not all rows at once: vocabulary x window may be far larger than the model
        logits_TV = model.head(hidden_TC[at : at + rows])
        wide = torch.promote_types(logits_TV.dtype, torch.float32)
        total += float(torch.nn.functional.cross_entropy(logits_TV.to(wide), wanted_T[at : at + rows], reduction="sum"))
    return total


def _first_bytes(piece: str) -> int:
    """UTF-8 length of a text's first token; a token that is part of a character shows as U+FFFD and is one byte."""
    return 1 if piece == "\ufffd" else len(piece.encode("utf-8", "surrogatepass"))
