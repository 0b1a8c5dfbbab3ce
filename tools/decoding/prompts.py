"""The tasks of the decoding table as prompt files: Spec-Bench's six, GSM8K, HumanEval, stories; and editing.

    tools/decoding/prompts.py OUT [--each N]      OUT/tasks.jsonl and OUT/editing.jsonl

Texts come from $LITHE_DATA and stay on the machine: some of them may be used but not passed on.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOOLS / "zoo"))
from corpus import bucket, data_folder, rows  # noqa: E402
from editing import examples  # noqa: E402

CHAT = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
LONGEST = 2200  # characters: the shipped models' context is 1,024 tokens; of a longer prompt the middle is left out


def main(words: list[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("out", type=Path)
    asked.add_argument("--each", type=int, default=10, help="prompts of a task")
    given = asked.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, list[str]] = {}
    for kind, prompt in everything(data_folder()):
        tasks.setdefault(kind, []).append(fit(prompt))
    chosen = [(kind, text) for kind, texts in tasks.items() for text in spread(texts, given.each)]
    write(given.out / "tasks.jsonl", chosen)
    write(given.out / "editing.jsonl", [("editing", row["prompt"]) for row in examples("test", 3 * given.each)])


def everything(data: Path) -> Iterator[tuple[str, str]]:
    for row in rows(data / "specbench" / "question.jsonl.gz"):
        kind = "chat" if row["category"] in CHAT else row["category"].replace("math_reasoning", "maths")
        yield kind, f"{row['turns'][0]}\nAnswer:"
    for row in rows(data / "gsm8k" / "test.jsonl.gz"):
        yield "gsm8k", f"Question: {row['question']}\nAnswer:"
    for row in rows(data / "humaneval" / "HumanEval.jsonl.gz"):
        yield "humaneval", row["prompt"]
    for row in rows(data / "tinystories" / "valid.jsonl.gz"):
        yield "stories", " ".join(row["text"].split()[:12])


def fit(prompt: str) -> str:
    return prompt if len(prompt) <= LONGEST else f"{prompt[: LONGEST // 2]} ... {prompt[-LONGEST // 2 :]}"


def spread(texts: list[str], count: int) -> list[str]:
    """A sample that depends on the texts alone."""
    return sorted(texts, key=lambda text: bucket(text, 2**32))[:count]


def write(path: Path, prompts: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"kind": kind, "prompt": prompt}, ensure_ascii=False) for kind, prompt in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
