"""The zoo's corpus: a few free sources as plain documents, each with 5 % held out by the hash of the text itself.

A document's side never depends on order or on the other documents, so adding a source moves nothing. Books are cut
into blocks of about 20 kB before they are dealt, so that the held-out text comes from all books.
"""

import gzip
import hashlib
import json
import lzma
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HELD_OUT_PERCENT = 5
BLOCK = 20_000  # characters of a book that are dealt together
END, USER, ASSISTANT, MASK = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|mask|>"


@dataclass(kw_only=True)
class Split:
    """The documents of one source."""

    train: list[str] = field(default_factory=list)
    heldout: list[str] = field(default_factory=list)

    def deal(self, document: str) -> None:
        (self.heldout if is_held_out(document) else self.train).append(document)


def data_folder() -> Path:
    """$LITHE_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("LITHE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"no data folder at {folder}: set LITHE_DATA to the folder that holds books/ and tinystories/")
    return folder


def bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


def is_held_out(document: str) -> bool:
    return bucket(document, 100) < HELD_OUT_PERCENT


def rows(path: Path) -> Iterator[dict]:
    """The objects of a compressed JSON-lines file."""
    opener = lzma.open if path.suffix == ".xz" else gzip.open
    with opener(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def chat(prompt: str, answer: str) -> str:
    return f"{USER}\n{prompt}\n{ASSISTANT}\n{answer}"


def task(prompt: str, answer: str, *, cue: str) -> str:
    """Half of the tasks as a chat turn, half as plain text with a cue, so that both kinds of prompt work."""
    prompt, answer = prompt.strip(), answer.strip()
    return chat(prompt, answer) if bucket(prompt, 2) else f"{prompt}\n{cue}{answer}"


# --- sources ---


def books(data: Path, name: str) -> Split:
    """Train blocks that are neighbours in a book become one document; held-out blocks stay single."""
    split, runs = Split(), []
    for row in rows(data / "books" / f"{name}.jsonl.xz"):
        run: list[str] = []
        for block in blocks(row["text"]):
            if is_held_out(block):
                split.heldout.append(block)
                runs, run = [*runs, run], []
            else:
                run.append(block)
        runs.append(run)
    known = {p for block in split.heldout for p in block.split("\n\n") if len(p) > 80}
    for run in filter(None, runs):  # some tales are in two books: what is held out once must not be trained on elsewhere
        split.train.append("\n\n".join(p for block in run for p in block.split("\n\n") if p not in known))
    return split


def blocks(text: str) -> Iterator[str]:
    """Whole paragraphs, about BLOCK characters at a time."""
    block, size = [], 0
    for paragraph in text.split("\n\n"):
        block.append(paragraph)
        size += len(paragraph)
        if size >= BLOCK:
            yield "\n\n".join(block)
            block, size = [], 0
    if block:
        yield "\n\n".join(block)


def stories(data: Path) -> Split:
    split = Split()
    for row in rows(data / "tinystories" / "train.jsonl.gz"):
        split.deal(row["text"].strip())
    split.heldout += [row["text"].strip() for row in rows(data / "tinystories" / "valid.jsonl.gz")]
    with gzip.open(data / "tinystories" / "tail_truecased.txt.gz", "rt", encoding="utf-8") as file:
        for story in unmarked_stories(file.read()):
            split.deal(story)
    return split


def unmarked_stories(text: str) -> Iterator[str]:
    """Story borders are lost in the tail: a single line break after 500 characters is one nearly always."""
    story = ""
    for line in re.split(r"(?<!\n)\n(?!\n)", text):
        story = f"{story}\n{line}" if story else line
        if len(story) > 500:
            yield story.strip()
            story = ""


def maths(data: Path) -> Split:
    split = Split()
    for row in rows(data / "gsm8k" / "train.jsonl.gz"):
        answer = re.sub(r"<<.*?>>", "", row["answer"])  # the calculator marks: no reader of the answer wants them
        prompt = row["question"].strip()
        split.deal(chat(prompt, answer) if bucket(prompt, 2) else f"Question: {prompt}\nAnswer: {answer}")
    return split


def instructions(data: Path) -> Split:
    split = Split()
    definitions = {row["task"]: row["definition"] for row in rows(data / "instruct" / "superni_tasks.jsonl.gz")}
    for row in rows(data / "instruct" / "superni_train.jsonl.gz"):
        split.deal(task(f"{definitions[row['task']].strip()}\n\nInput: {row['input'].strip()}", row["output"], cue="Output: "))
    for name in ("self_instruct_seed175", "self_instruct_user252"):
        for row in rows(data / "instruct" / f"{name}.jsonl.gz"):
            for instance in row["instances"]:
                prompt = f"{row['instruction'].strip()}\n\nInput: {instance['input'].strip()}"
                split.deal(task(prompt.removesuffix("\n\nInput: "), instance["output"], cue="Output: "))
    return split


def programs(data: Path) -> Split:
    """MBPP's own train half: ids 11 to 510 are its test."""
    split = Split()
    for row in rows(data / "mbpp" / "mbpp.jsonl.gz"):
        if 601 <= row["task_id"] <= 974:
            split.deal(task(row["text"], row["code"].replace("\r\n", "\n"), cue=""))
    return split


def plays(data: Path) -> Split:
    split = Split()
    with gzip.open(data / "tinyshakespeare" / "input.txt.gz", "rt", encoding="utf-8") as file:
        for block in blocks(file.read()):
            split.deal(block)
    return split


def python_library(_: Path) -> Split:
    """The sources of the Python that runs this, without tests and very long files."""
    split, root = Split(), Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        if not left_out & set(path.relative_to(root).parts) and path.stat().st_size < 60_000:
            split.deal(path.read_text(encoding="utf-8", errors="replace").strip())
    return split


def sources() -> dict[str, Split]:
    """Every source of the zoo's models by name."""
    data = data_folder()
    return {
        "stories": stories(data),
        "books_children": books(data, "children_adventure"),
        "books_general": books(data, "general"),
        "instructions": instructions(data),
        "maths": maths(data),
        "python": python_library(data),
        "programs": programs(data),
        "plays": plays(data),
    }


if __name__ == "__main__":
    for name, split in sources().items():
        for side, documents in (("train", split.train), ("held out", split.heldout)):
            print(f"{name:15} {side:8} {len(documents):6} documents {sum(map(len, documents)) / 1e6:6.2f} MB")
