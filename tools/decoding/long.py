"""Drafts that read only parts of a long prompt, beside those that read all of it, into the ledger.

    tools/decoding/long.py [--shift] [--prompts N] [--ledger FILE]

Prompts of some 700 tokens: shipped ones one after another, then the first half of one that stands far before, so that
what follows is there to be found. Needs a quiet machine; half a minute. --shift instead samples with the target's law moved
towards the draft's, the draft having read what was retrieved, other chunks, or the question alone; what the texts cost the
target that reads everything is what that does to them. No time is measured then.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import lithe
from lithe.bench import stats
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.bench.runner import bench
from lithe.cli._common import read_prompts
from lithe.cli._measure import progress
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.decoder import ALL
from lithe.model.load import ZOO
from lithe.sampling.law import Law

LEDGER = Path(__file__).resolve().parent.parent.parent / "docs" / "ledger-decoding.jsonl"
PROMPTS, LENGTH, TOKENS = 8, 700, 32
PARTS = "rapid:budget=256,chunk=32"
METHODS = (PARTS, f"{PARTS},choose=first", f"{PARTS},choose=random", f"{PARTS},model=zoo:tiny-draft", "draft_model:tokens=10",
           "prompt_lookup")
SHIFTED = [(0, "")] + [(eta, read) for eta in (10, 50) for read in (",choose=bm25", "", ",choose=random", ",least=1")]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--shift", action="store_true")
    asked.add_argument("--prompts", type=int, default=PROMPTS)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    given = asked.parse_args()
    model = lithe.load("zoo:tiny")
    texts = again(read_prompts(ZOO / "prompts" / "mixed.jsonl"), model.tokenizer, given.prompts)
    if given.shift:
        shift(model, texts, Ledger(given.ledger))
        return
    with progress("long") as tell:
        rows = bench(model, METHODS, texts, max_tokens=TOKENS, part="long", ledger=Ledger(given.ledger), progress=tell)
    for row in rows:
        print(row.method, row.lossless, row.tokens_per_pass, row.speedup, row.speedup_interval, row.error or "")


def shift(model, texts: list[str], ledger: Ledger) -> None:
    """One record of what each step size and reading does to sampled texts, beside no step, prompt by prompt."""
    found = {f"eta={eta}{read}": sampled(model, f"{PARTS}{read}", eta, texts) for eta, read in SHIFTED}
    exact, measured = found["eta=0"], {}
    for name, each in found.items():
        columns = [np.array([column], dtype=float).T for side in (each, exact) for column in zip(*side, strict=True)]
        ends = stats.interval(dearer, *columns) or (0.0, 0.0)
        nats, tokens, passes = (sum(column) for column in zip(*each, strict=True))
        measured[name] = {"nats": round(nats / tokens, 4), "tokens_per_pass": round(tokens / passes, 4),
                          "dearer": [round(float(value), 4) for value in (dearer(*columns), *ends)]}
        print(name, measured[name], flush=True)
    made = plan(model, draft=PARTS, accept="rapid")
    ledger.append(record("shift", model, measured=measured, inputs=texts, settings={"max_tokens": 2 * TOKENS, "temperature": 1},
                         seed=0, method=made.name, knobs=made.knobs, parts=[made.draft, *made.parts]))


def dearer(nats, tokens, passes, exact_nats, exact_tokens, exact_passes):
    """Nats a token more than without a step."""
    total = lambda column: column.sum((-2, -1))
    return total(nats) / total(tokens) - total(exact_nats) / total(exact_tokens)


@torch.inference_mode()
def sampled(model, draft: str, eta: float, texts: list[str]) -> list[tuple[float, int, int]]:
    """Of each text: nats of what is said behind it, tokens, passes."""
    made, law, found = plan(model, draft=draft, accept=f"rapid:eta={eta}"), Law.of(temperature=1.0), []
    for seed, text in enumerate(texts):
        sequence = request(model, text, law=law, max_tokens=2 * TOKENS, seed=seed, ignore_eos=True)
        passes = sum(1 for _ in run(made, [sequence]))
        said = torch.tensor(sequence.tokens)
        law_TV = model(torch.tensor([sequence.ids]), logits=ALL).scores[0, sequence.prompt - 1 : -1].double().log_softmax(-1)
        found.append((-float(law_TV.gather(-1, said[:, None]).sum()), len(said), passes))
    return found


def again(shipped: list[str], tokenizer, prompts: int = PROMPTS, length: int = LENGTH) -> list[str]:
    """Long prompts that end in the middle of what they have said before, a third from their beginning."""
    made, apart = [], len(shipped) // prompts
    for turn in range(prompts):
        parts: list[str] = []
        for text in shipped[turn * apart :] + shipped[: turn * apart]:
            if len(tokenizer.encode("\n".join([*parts, text]))) > length:
                break
            parts.append(text)
        words = parts[len(parts) // 3].split()
        made.append("\n".join([*parts, " ".join(words[: max(6, len(words) // 2)])]))
    return made


if __name__ == "__main__":
    main()
