"""From data files to token ids with what is to be learned marked, by the model's own tokenizer and chat template."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lithe.errors import FormatError, UsageError
from lithe.model.tokenizer import Tokenizer
from lithe.train import rows
from lithe.train.rows import Marked


@dataclass(frozen=True)
class Examples:
    """Sequences of token ids, flat: example i is ids[starts[i] : starts[i + 1]], and counted says which the loss counts.

    forms: rows by their form. unread: rows by the fields that were not read. cut: examples that lost their end.
    """

    ids: np.ndarray  # int32
    counted: np.ndarray  # bool; never an example's first token, which nothing foretells
    starts: np.ndarray  # int64
    forms: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    cut: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        place = slice(self.starts[i], self.starts[i + 1])
        return self.ids[place], self.counted[place]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Rows of a pass that each example takes: its tokens but the last, which is only foretold."""
        return np.diff(self.starts) - 1

    @property
    def digest(self) -> str:
        """SHA-256 of what is trained on, 16 digits."""
        whole = hashlib.sha256()
        for part in (self.ids, self.counted, self.starts):
            whole.update(np.ascontiguousarray(part).tobytes())
        return whole.hexdigest()[:16]


def of_ids(sequences: Iterable[tuple[Iterable[int], Iterable[bool]]], **notes) -> Examples:
    """Examples from (ids, whether each is to be learned)."""
    ids, counted, starts = array("i"), array("b"), array("q", [0])
    for sequence, learned in sequences:
        ids.extend(sequence)
        counted.extend(map(int, learned))
        if starts[-1] < len(counted):
            counted[starts[-1]] = 0
        starts.append(len(ids))
    return Examples(np.array(ids, np.int32), np.array(counted, bool), np.array(starts, np.int64), **notes)


def read(path: str | Path, tokenizer: Tokenizer, *, context: int, cut: bool = False, everything: bool = False) -> Examples:
    """The examples of a .jsonl or .jsonl.gz file (see rows.py for its forms).

    context: most rows of a pass; a longer example is an error, or with `cut` loses its end. everything: prompts are learned
    too. Raises FormatError with file and line for what cannot be used, UsageError for a file that is not there.
    """
    if context < 1:
        raise UsageError(f"a context of {context} tokens holds nothing")
    forms: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    lost = 0
    chat = None if tokenizer.template is None else tokenizer.chat

    def sequences() -> Iterator[tuple[list[int], list[bool]]]:
        nonlocal lost
        for where, row in rows.lines(path):
            kind = rows.form(row, where)
            forms[kind] += 1
            unread.update(map(str, row.keys() - set.union(*rows.FORMS[kind])))
            ids, learned = encode(rows.mark(row, kind, where, chat), tokenizer, where)
            if len(ids) > context + 1:
                if not cut:
                    raise FormatError(f"{where} has {len(ids)} tokens, more than the {context} of the context and the one "
                                      "behind them: shorten it, or ask for such rows to be cut")
                ids, learned, lost = ids[: context + 1], learned[: context + 1], lost + 1
            learned = [True] * len(ids) if everything else learned
            if not any(learned[1:]):
                raise FormatError(f"{where} has no token to learn" + (" within the context" if cut else ""))
            yield ids, learned

    found = of_ids(sequences())
    if not len(found):
        raise FormatError(f"{path} holds no rows")
    return Examples(found.ids, found.counted, found.starts, dict(forms), dict(unread), lost)


def encode(marked: Marked, tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    """Token ids, and whether each is to be learned: those with a character of a learned span, and the end of a text.

    A token that straddles the border between a prompt and what follows it counts as what follows.
    """
    try:
        encoding = tokenizer.backend.encode(marked.text, add_special_tokens=False)
    except (TypeError, UnicodeEncodeError) as problem:
        raise FormatError(f"{where} cannot be encoded: {problem}") from None
    ids = encoding.ids
    learned = [any(start < stop and begin < stop and end > start for start, stop in marked.learned)
               for begin, end in encoding.offsets]
    if marked.bos and tokenizer.prefix and ids[: len(tokenizer.prefix)] != tokenizer.prefix:
        ids, learned = tokenizer.prefix + ids, [False] * len(tokenizer.prefix) + learned
    end = end_id(tokenizer) if marked.eos else None
    if end is not None and ids[-1:] != [end]:
        ids, learned = [*ids, end], [*learned, True]
    return ids, learned


def end_id(tokenizer: Tokenizer) -> int | None:
    """The token that closes a text: the one the tokenizer names, else the least that ends generation."""
    named = tokenizer.vocabulary.get(tokenizer.special.get("eos_token", ""))
    return named if named is not None else min(tokenizer.eos_ids, default=None)
