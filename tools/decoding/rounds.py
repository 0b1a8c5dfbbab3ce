"""Where a round's time goes, method by method, into the ledger: medians in microseconds.

    tools/decoding/rounds.py [--ledger FILE] [--dtype KIND] [METHOD ...]

Rest is all that is neither pass, propose, walk nor observe: keeping lanes in step, checks, the pass's inputs, commit, text, and
the clocks themselves. Rounds that C takes say their parts themselves. Needs a quiet machine; a quarter of a minute.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import lithe
from lithe.bench import quiet
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.cli._common import read_prompts
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.load import ZOO

ROOT = Path(__file__).resolve().parent.parent.parent
LEDGER, MODEL, PROMPTS, TOKENS = ROOT / "docs" / "ledger-decoding.jsonl", "zoo:tiny", 8, 64
METHODS = ("plain", "prompt_lookup", "suffix", "token_recycling:nodes=7", "blend", "draft_model:tokens=4")
PARTS = ("pass", "propose", "walk", "observe")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("method", nargs="*", default=METHODS)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--dtype", default="auto", help="what weights are kept in, as every verb takes it")
    given = asked.parse_args()
    model, ledger = lithe.load(MODEL, dtype=given.dtype), Ledger(given.ledger)
    prompts = read_prompts(ZOO / "prompts" / "mixed.jsonl")[:PROMPTS]
    spent = dict.fromkeys(PARTS, 0.0)
    fast = model.fast
    model.forward, fast.express, fast.ahead = (clocked(spent, "pass", way) for way in (model.forward, fast.express, fast.ahead))
    fast.drafted = told(spent, fast.drafted)
    for spec in given.method:
        made, before = plan(model, draft=None if spec == "plain" else spec), quiet.listen()
        rule = made.greedy
        rule.walk, rule.walk_best = (clocked(spent, "walk", way) for way in (rule.walk, rule.walk_best))
        if made.draft is not None:
            made.draft.propose = clocked(spent, "propose", made.draft.propose)
            made.draft.observe = clocked(spent, "observe", made.draft.observe)
        measured = rounds(made, prompts, spent) | {"disturbed": quiet.worse(before, quiet.listen()).disturbed}
        ledger.append(record("rounds", model, measured=measured, inputs=prompts, settings={"max_tokens": TOKENS},
                             method=made.name, knobs=made.knobs, parts=[made.draft, *made.parts]))
        print(f"{made.name}: {measured}", flush=True)


def clocked(spent: dict[str, float], part: str, act: Callable) -> Callable:
    """The same, its seconds added to a part's."""
    def timed(*args, **named):
        begun = perf_counter()
        try:
            return act(*args, **named)
        finally:
            spent[part] += perf_counter() - begun
    return timed


def told(spent: dict[str, float], act: Callable) -> Callable:
    """Rounds by one call, each of which says its parts."""
    def timed(*args):
        found = act(*args)
        for one in found:
            for part, said in zip(PARTS, ("verify", "draft", "walk", "observe"), strict=True):
                spent[part] += one.seconds[said]
        return found
    return timed


def rounds(made, prompts: list[str], spent: dict[str, float]) -> dict:
    """Medians over all calls but the first of each text, which reads its prompt; rounds of one call share its time."""
    found: dict[str, list[float]] = {part: [] for part in (*PARTS, "rest")}
    count = 0
    for prompt in prompts:
        calls: list[list[dict[str, float]]] = []
        steps = run(made, [request(made.model, prompt, max_tokens=TOKENS)])
        while True:
            spent.update(dict.fromkeys(PARTS, 0.0))
            begun = perf_counter()
            done = next(steps, None)
            whole = perf_counter() - begun
            if done is None:
                break
            if spent["pass"]:
                calls.append([])
            calls[-1].append(spent | {"rest": whole - sum(spent.values())})
        for call in calls[1:]:
            count += len(call)
            for part, times in found.items():
                times.append(sum(each[part] for each in call) / len(call))
    return {part: round(median(times) * 1e6) for part, times in found.items()} | {"rounds": count}


if __name__ == "__main__":
    main()
