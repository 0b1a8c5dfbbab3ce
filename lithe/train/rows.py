"""Lines of a data file as text with the part to learn marked: messages, prompt and completion, text, or Alpaca's fields.

A row's form is told by its fields, so one file may hold several. What a row lacks, or holds too much of, is an error that says
where and what; fields that no form reads are counted, for the caller to tell.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lithe.errors import FormatError, LitheError, UsageError

FORMS = {  # the fields that tell a form, and those it may have beside them
    "messages": ({"messages"}, {"tools"}),
    "prompt/completion": ({"prompt", "completion"}, {"tools"}),
    "alpaca": ({"instruction", "output"}, {"input", "system"}),
    "text": ({"text"}, set()),
}
Chat = Callable[..., str]  # Tokenizer.chat


@dataclass(frozen=True)
class Marked:
    """A text and the spans of its characters that are to be learned. bos, eos: whether the tokens that open and close a text
    belong around it; a chat template has put in its own."""

    text: str
    learned: tuple[tuple[int, int], ...]
    bos: bool = True
    eos: bool = True


def lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Where it stands and the JSON object, for each line of a .jsonl or .jsonl.gz file; empty lines may only end it."""
    path = Path(path).expanduser()
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise UsageError(f"{path}: training data is read from .jsonl or .jsonl.gz files, one JSON object a line")
    blank = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.strip():
                    blank = blank or number
                    continue
                if blank:
                    raise FormatError(f"{path}, line {blank} is empty: every line must hold a JSON object")
                yield where, _object(line, where, first=number == 1)
    except FileNotFoundError:
        raise UsageError(f"there is no data file {path}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise FormatError(f"{path} is not a whole gzip file: {problem}") from None
    except OSError as problem:
        raise UsageError(f"cannot read data: {problem}") from None


def _object(line: bytes, where: str, first: bool) -> dict:
    try:  # utf-8-sig: a byte-order mark, as some editors write, is no part of the data
        row = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as problem:
        raise FormatError(f"{where} is not UTF-8: byte {problem.start + 1} is {line[problem.start]:#04x}") from None
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{where} is not JSON: {problem}") from None
    if not isinstance(row, dict):
        raise FormatError(f"{where} is not a JSON object but a {type(row).__name__}")
    return row


def form(row: dict, where: str) -> str:
    """Which of FORMS a row has. Raises FormatError for none and for several at once."""
    found = [name for name, (needed, _) in FORMS.items() if needed <= row.keys()]
    if len(found) == 1:
        return found[0]
    wanted = "; ".join(" and ".join(sorted(needed)) for needed, _ in FORMS.values())
    if found:
        raise FormatError(f"{where} could be read as {' or as '.join(found)}: keep the fields of one")
    raise FormatError(f"{where} has the fields {', '.join(map(str, row)) or '(none)'}; a row needs one of: {wanted}")


def mark(row: dict, kind: str, where: str, chat: Chat | None) -> Marked:
    """The text of a row of that form. chat renders conversations; None where the model has no template for them."""
    if kind == "text":
        text = _text(row, "text", where)
        return Marked(text, ((0, len(text)),))
    if kind == "alpaca":
        return _alpaca(row, where, chat)
    if kind == "messages":
        messages = _messages(row["messages"], "messages", where)
        return _conversation(messages, set(range(len(messages))), row, where, chat)
    if isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        before, after = (_messages(row[name], name, where) for name in ("prompt", "completion"))
        return _conversation(before + after, set(range(len(before), len(before + after))), row, where, chat)
    prompt, completion = _text(row, "prompt", where, empty=True), _text(row, "completion", where)
    return Marked(prompt + completion, ((len(prompt), len(prompt + completion)),))


def _alpaca(row: dict, where: str, chat: Chat | None) -> Marked:
    """An instruction as a conversation, or under headings where the model knows none."""
    instruction, output = _text(row, "instruction", where), _text(row, "output", where)
    given, system = (_text(row, name, where, empty=True) if name in row else "" for name in ("input", "system"))
    if chat is not None:
        messages = [{"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction},
                    {"role": "assistant", "content": output}]
        messages = ([{"role": "system", "content": system}] if system else []) + messages
        return _conversation(messages, {len(messages) - 1}, row, where, chat)
    parts = [system] if system else []
    parts += [f"### Instruction:\n{instruction}"] + ([f"### Input:\n{given}"] if given else []) + ["### Response:\n"]
    prompt = "\n\n".join(parts)
    return Marked(prompt + output, ((len(prompt), len(prompt + output)),))


def _conversation(messages: list[dict], wanted: set[int], row: dict, where: str, chat: Chat | None) -> Marked:
    """The conversation in the model's format; learned is what follows each prompt for an assistant's turn among `wanted`.

    A turn is found by rendering the conversation up to it, so the template must put turns one after another.
    """
    if chat is None:
        raise FormatError(f"{where} is a conversation, but this model has no chat template: give rows of prompt and completion")
    extra = {"tools": row["tools"]} if row.get("tools") else {}
    try:
        whole, learned = chat(messages, add_generation_prompt=False, **extra), []
        for i, message in enumerate(messages):
            if message["role"] != "assistant" or i not in wanted:
                continue
            before = chat(messages[:i], add_generation_prompt=True, **extra)
            after = chat(messages[: i + 1], add_generation_prompt=False, **extra)
            if not (after.startswith(before) and whole.startswith(after)):
                raise FormatError(f"{where}: this model's chat template changes earlier turns when a later one follows, so "
                                  f"what turn {i + 1} adds cannot be told apart: give one row of prompt and completion a turn")
            learned.append((len(before), len(after)))
    except LitheError as problem:
        raise FormatError(str(problem) if where in str(problem) else f"{where}: {problem}") from None
    if not learned:
        raise FormatError(f"{where} holds no turn of the role assistant, so there is nothing to learn from it")
    return Marked(whole, tuple(learned), bos=False, eos=False)


def _text(row: dict, field: str, where: str, empty: bool = False) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise FormatError(f"{where}: field {field!r} must be text, not {type(value).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise FormatError(f"{where}: field {field!r} holds half a surrogate pair, which is no letter")
    if not value and not empty:
        raise FormatError(f"{where}: field {field!r} is empty")
    return value


def _messages(value: object, field: str, where: str) -> list[dict]:
    if not isinstance(value, list) or not value:
        raise FormatError(f"{where}: field {field!r} must be a list of messages, not {value!r:.40}")
    for number, message in enumerate(value, 1):
        at = f"{where}: message {number} of {field!r}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise FormatError(f"{at} must be an object with a role and a content")
        if message.get("content") is None and not message.get("tool_calls"):
            raise FormatError(f"{at} has no content")
        if "content" in message and message["content"] is not None:
            _text(message, "content", at, empty=message["role"] != "assistant" or bool(message.get("tool_calls")))
    return value
