"""The editing task: sentences of public-domain books with seeded mistakes, and the same sentences without.

    tools/zoo/editing.py OUT [--rows N]      OUT/train.jsonl, OUT/valid.jsonl and OUT/test.jsonl of prompt and completion

Valid and test come from the blocks of the books that the zoo's models never read.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from corpus import books, bucket, data_folder

PARTS = ("train", "valid", "test")
RATE = 0.07  # of the words get a mistake: more than four fifths of the tokens stay
SHORT, LONG = 90, 420  # characters of a passage
ASK, REPLY = "Correct the mistakes.\n", "\nCorrected:"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("out", type=Path)
    asked.add_argument("--rows", type=int, default=60_000, help="of train.jsonl")
    given = asked.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", given.rows), ("valid", 200), ("test", 100)):
        lines = [json.dumps(row, ensure_ascii=False) for row in examples(part, count)]
        (given.out / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def examples(part: str, count: int) -> list[dict[str, str]]:
    """The first so many rows of train, valid or test: the same ones each time."""
    split = books(data_folder(), "children_adventure")
    dice = random.Random(PARTS.index(part))
    texts = [passage for document in (split.train if part == "train" else split.heldout) for passage in passages(document)]
    if part != "train":  # two halves of what was held out
        texts = [text for text in texts if bucket(text, 2) == PARTS.index(part) - 1]
    dice.shuffle(texts)
    return [row(text, dice) for text in texts[:count]]


def passages(document: str) -> Iterator[str]:
    """Runs of whole sentences of one paragraph, without markup."""
    for paragraph in document.split("\n\n"):
        text = " ".join(paragraph.split())
        if re.search(r"[#*_\[\]|<>]", text):
            continue
        run = ""
        for sentence in re.findall(r"[^.!?]+[.!?]+[\"'”’)]*\s*", text):
            run += sentence
            if len(run) >= SHORT:
                if len(run) <= LONG:
                    yield run.strip()
                run = ""


def row(text: str, dice: random.Random) -> dict[str, str]:
    return {"prompt": f"{ASK}{spoil(text, dice)}{REPLY}", "completion": f" {text}"}


def spoil(text: str, dice: random.Random) -> str:
    """Drop, double, swap, misspell or recase a word here and there; at least one."""
    words = text.split(" ")
    chosen = [i for i in range(len(words)) if dice.random() < RATE] or [dice.randrange(len(words))]
    for i in reversed(chosen):  # from the end, so that earlier places keep their numbers
        words[i : i + 2] = dice.choice(MISTAKES)(words[i : i + 2], dice)
    return " ".join(words)


def drop(pair: list[str], dice: random.Random) -> list[str]:
    return pair[1:]


def double(pair: list[str], dice: random.Random) -> list[str]:
    return [pair[0], *pair]


def swap(pair: list[str], dice: random.Random) -> list[str]:
    return pair[::-1]


def recase(pair: list[str], dice: random.Random) -> list[str]:
    return [pair[0].swapcase() if len(pair[0]) < 3 else pair[0][0].swapcase() + pair[0][1:], *pair[1:]]


def misspell(pair: list[str], dice: random.Random) -> list[str]:
    word = pair[0]
    if len(word) < 4:
        return [word + word[-1:], *pair[1:]]
    i = dice.randrange(len(word) - 1)
    return [word[:i] + word[i + 1] + word[i] + word[i + 2 :], *pair[1:]]


MISTAKES: tuple[Callable[[list[str], random.Random], list[str]], ...] = (drop, double, swap, recase, misspell, misspell)

if __name__ == "__main__":
    main()
