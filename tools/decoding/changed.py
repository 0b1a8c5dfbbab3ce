"""What methods that change the output make of it, beside their controls, into the ledger. Counts: a busy machine will do.

    tools/decoding/changed.py [--ledger FILE] [--only NAME ...] [--prompts N] [--max-tokens N]

Greedy texts of the first shipped prompts, or of the beginnings of stories for several drafts at once; `loss` is of what was
written, under the whole model, in nats a token; differences to a control are paired by prompt, with 95 % bootstrap intervals.
Entropy's control is the chance whose share of the large model comes nearest. What is in the ledger is not run again.
"""

import argparse
from pathlib import Path

import numpy as np
import prompts as tasks
import torch

import lithe
from lithe.bench import stats
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.cli._common import read_prompts
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.decoder import ALL
from lithe.model.load import ZOO
from lithe.sampling.law import Law

ROOT = Path(__file__).resolve().parent.parent.parent
LEDGER, WORK = ROOT / "docs" / "ledger-decoding.jsonl", ROOT / ".lithe" / "decoding"
SIDE, OPENING, MORE, CORPUS = 8, 15, 10, 1_500_000  # sequences at a time; tokens of stories given and written; characters
TINY, SMALL = "zoo:tiny", "zoo:tiny-draft"
LUD = str(ROOT / ".lithe" / "heads" / "lud")  # lithe units zoo:tiny-draft
FAMILIES: dict[str, tuple[str, str, str, list[str]]] = {  # judge, writer, method, controls
    "entropy": (TINY, TINY, "ead:tau=3", [f"ead:chance={chance}" for chance in (0.4, 0.5, 0.6, 0.7)]),
    "entropy 2": (TINY, TINY, "ead:tau=2", [f"ead:chance={chance}" for chance in (0.6, 0.7, 0.8)]),
    "skips": (TINY, TINY, "unified_skip:speedup=1.5", [f"unified_skip:speedup=1.5,spread={end}" for end in ("first", "last")]),
    "skips 2": (TINY, TINY, "unified_skip:speedup=2", [f"unified_skip:speedup=2,spread={end}" for end in ("first", "last")]),
    "units": (SMALL, LUD, "search=lud:alpha=0.9", [f"search=lud:alpha={alpha}" for alpha in (1.01, 0.5, 0.99, 0.999)]),
    "units verified": (SMALL, LUD, "draft=lud", ["search=lud:alpha=1.01"]),
    "units untuned": (SMALL, SMALL, "draft=lud", [""]),
}
STORIES = ("superposed", ["superposed:superpose=false", "superposed:mix=0"])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--only", action="append")
    asked.add_argument("--prompts", type=int, default=24)
    asked.add_argument("--max-tokens", type=int, default=64)
    given = asked.parse_args()
    ledger, shipped = Ledger(given.ledger), read_prompts(ZOO / "prompts" / "mixed.jsonl")[: given.prompts]
    there = {r.settings["part"] for r in ledger.read() if r.suite == "changed"}
    for name, (judge, writer, method, controls) in FAMILIES.items():
        if name not in there and (not given.only or name in given.only) and (writer != LUD or Path(LUD).is_dir()):
            judged, model = lithe.load(judge), lithe.load(writer)
            texts = {spec: write(model, spec, shipped, given.max_tokens) for spec in (method, *controls, "")}
            told = {spec: figures(judged, *texts[spec], texts[""][1]) for spec in texts}
            keep(ledger, model, name, method, controls, told, shipped, given.max_tokens)
    if "drafts" not in there and (not given.only or "drafts" in given.only):
        drafts(ledger, given.prompts)


def write(model, spec: str, prompts: list, most: int, seed: int = 0, **law) -> tuple[list, list, float, float]:
    """Ids of the prompts, tokens written, tokens a pass, and the share that no other model wrote."""
    made, given, texts, passes, own = plan(model, draft=spec or None), [], [], 0, []
    for at in range(0, len(prompts), SIDE):
        asked = [request(model, p, max_tokens=most, law=Law.of(**law), seed=seed + at + i, ignore_eos=True)
                 for i, p in enumerate(prompts[at : at + SIDE])]
        for step in run(made, asked):
            passes += 1
            own += [source != "small" for source in step.sources]
        given += [s.ids[: s.prompt] for s in asked]
        texts += [s.tokens for s in asked]
    return given, texts, len(own) / passes, sum(own) / len(own)


@torch.inference_mode()
def loss(judge, given: list[int], text: list[int]) -> float:
    logits_TV = judge(torch.tensor([given + text]), logits=ALL).logits[0, len(given) - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits_TV, torch.tensor(text)))


def figures(judge, given: list, texts: list, tokens_per_pass: float, own: float, plain: list) -> dict:
    same = np.mean([a == b for text, other in zip(texts, plain, strict=True) for a, b in zip(text, other, strict=True)])
    return {"losses": [loss(judge, *pair) for pair in zip(given, texts, strict=True)], "same": float(same), "own": own,
            "tokens_per_pass": tokens_per_pass}


def keep(ledger: Ledger, model, part: str, method: str, controls: list, told: dict, prompts: list, most: int) -> None:
    """A record for each control: of them all, and how the method's loss differs."""
    for spec in controls:
        measured = {side: {name: round(float(np.mean(value)), 4) for name, value in told[each].items()}
                    for side, each in (("method", method), ("control", spec), ("plain", ""))}
        measured |= {"versus": spec, **apart(told[method]["losses"], told[spec]["losses"])}
        made = plan(model, draft=method)
        settings = {"part": part, "max_tokens": most}
        ledger.append(record("changed", model, measured=measured, inputs=prompts, settings=settings, seed=0, method=method,
                             knobs=made.knobs, parts=[made.draft, made.search, *made.parts]))
        print(part, method, spec, measured, flush=True)


def apart(more: list, less: list) -> dict:
    columns = [np.array(side)[:, None] for side in (more, less)]
    over = lambda a, b: a.mean((-2, -1)) - b.mean((-2, -1))
    return {"difference": round(float(np.mean(more) - np.mean(less)), 4),
            "interval": [round(float(end), 4) for end in stats.interval(over, *columns) or (0.0, 0.0)]}


def drafts(ledger: Ledger, many: int) -> None:
    """Several drafts at once, against samples of the nucleus: loss of each, and how many of them differ."""
    model = lithe.load(TINY)
    openings = [model.tokenizer.encode(text)[:OPENING] for text in stories(many)]
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "ngrams.txt").write_text("\n".join(stories(10**9, "train"))[:CORPUS], encoding="utf-8")
    nucleus = [write(model, "", openings, MORE, seed=1000 * k, temperature=1.0, top_p=0.9) for k in range(3)]
    told = {"nucleus": [[loss(model, ids, run_[1][i]) for run_ in nucleus] for i, ids in enumerate(openings)]}
    unlike = {}
    for spec in (STORIES[0], *STORIES[1]):
        made = plan(model, draft=f"{spec}{',' if ':' in spec else ':'}corpus={WORK / 'ngrams.txt'}")
        found = []
        for ids in openings:
            asked = request(model, ids, max_tokens=MORE, ignore_eos=True)
            list(run(made, [asked]))
            found.append(made.search.drafts[asked.number])
        told[spec] = [[loss(model, ids, text) for text in texts] for ids, texts in zip(openings, found, strict=True)]
        unlike[spec] = float(np.mean([len({tuple(text) for text in texts}) / len(texts) for texts in found]))
    for control in ("nucleus", *STORIES[1]):
        (first, further), (its, more) = (parted(told[each]) for each in (STORIES[0], control))
        measured = {"versus": control, "loss": round(float(np.mean(first)), 4), "other": round(float(np.mean(its)), 4),
                    "first": apart(first, its), "further": apart(further, more), "unlike": unlike}
        settings = {"part": "drafts", "max_tokens": MORE}
        ledger.append(record("changed", model, measured=measured, inputs=openings, settings=settings, seed=0, method=STORIES[0],
                             parts=[made.search]))
        print("drafts", control, measured, flush=True)


def parted(losses: list[list[float]]) -> tuple[list[float], list[float]]:
    """Of each opening the first draft's loss, and the mean of the others'."""
    return [row[0] for row in losses], [float(np.mean(row[1:])) for row in losses]


def stories(many: int, split: str = "valid") -> list[str]:
    found = [row["text"] for row in tasks.rows(tasks.data_folder() / "tinystories" / f"{split}.jsonl.gz")]
    return tasks.spread(found, min(many, len(found)))


if __name__ == "__main__":
    main()
