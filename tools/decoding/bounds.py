"""What drafts that copy could gain at most, if all but the passes were free: counted, not timed, into the ledger.

    tools/decoding/bounds.py [--ledger FILE] [--precision NAME ...] [--part tasks|editing ...] [--each N] [--max-tokens N]
                             [--seconds N] [--show]

Texts that do not loop are decoded again with each draft at each size, and for each round its tokens and guesses are kept; and
with all drafts at once, each with so many guesses of its own, of which only the size of one is charged, as if it had been known
whose would be right. One record a part and precision; after --seconds no text is begun. --show adds up what is there over the
stored T(n) of this machine: tokens for the time of a plain pass, mean over tasks. Counts: the machine may be busy.
"""

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator

import measure
import numpy as np

import lithe
from lithe.bench import stats
from lithe.bench.ledger import Ledger, Record
from lithe.bench.provenance import record
from lithe.cli._common import read_kinds
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan
from lithe.model.runtime import stored
from lithe.ops.tree import Tree
from lithe.tune.rack import Rack

LEDGER = measure.ROOT / "docs" / "ledger-bounds.jsonl"
PRECISIONS, PARTS = ("fp32", "int8", "bf16", "int4"), ("tasks", "editing")
SIZES = (1, 2, 3, 5, 7)  # guesses: rows of a pass less one
DRAFTS = ("suffix:nodes={}", "suffix:alpha=4,nodes={}", "prompt_lookup:tokens={}", "token_recycling:nodes={}")
ANY = "any of them"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=measure.Path, default=LEDGER)
    asked.add_argument("--precision", action="append", choices=PRECISIONS)
    asked.add_argument("--part", action="append", choices=PARTS)
    asked.add_argument("--each", type=int, default=3, help="prompts of a task, three times as many of editing")
    asked.add_argument("--max-tokens", type=int, default=64)
    asked.add_argument("--seconds", type=float, default=float("inf"))
    asked.add_argument("--show", action="store_true")
    given = asked.parse_args()
    ledger = Ledger(given.ledger)
    for part, precision in itertools.product(given.part or PARTS, given.precision or PRECISIONS):
        model, most = lithe.load(measure.MODEL, dtype=precision), given.max_tokens
        if given.show:
            for found in ledger.read():
                if found.suite == "bounds" and (found.settings["part"], found.settings["asked"]) == (part, precision):
                    show(found, stored(model))
            continue
        if part == "editing":
            model, most = lithe.load(measure.MODEL), 2 * most  # an adapter is merged into floats
            lithe.attach(model, measure.EDITOR)
            Rack.of(model).merge(measure.EDITOR.name)
        kinds, prompts, rounds = count(model, texts(model, part, given.each, most), most, time.monotonic() + given.seconds)
        ledger.append(record("bounds", model, inputs=prompts, measured={"sizes": SIZES, "kinds": kinds, "rounds": rounds},
                             settings={"part": part, "asked": precision, "max_tokens": given.max_tokens}))
        print(part, precision, len(prompts), flush=True)
    return 0


def texts(model, part: str, each: int, most: int) -> Iterator[tuple[str, str]]:
    """Kind and prompt, the kinds in turn: of each task those on which plain decoding does not loop."""
    made, kinds = plan(model), dict[str, list[str]]()
    for prompt, kind in read_kinds(measure.WORK / f"{part}.jsonl"):
        kinds.setdefault(kind, []).append(prompt)
    left = dict.fromkeys(kinds, each if part == "tasks" else 3 * each)
    for turn in itertools.zip_longest(*kinds.values()):
        for kind, prompt in zip(kinds, turn, strict=True):
            if left[kind] and prompt is not None:
                asked = request(model, prompt, max_tokens=most)
                list(run(made, [asked]))
                if part == "editing" or not stats.loops(asked.tokens):
                    left[kind] -= 1
                    yield kind, prompt


class Union:
    """Drafts side by side: all that any of them guesses."""

    def __init__(self, drafts: list):
        self.drafts, self.tensors = drafts, True

    def start(self, sequences):
        for draft in self.drafts:
            draft.start(sequences)

    def propose(self, sequences, room):
        found = zip(*[draft.propose(sequences, room) for draft in self.drafts], strict=True)
        return [Tree.trie(s.ids[-1], [[tree.tokens[i] for i in tree.path(n)] for tree in trees for n in range(1, len(tree))])
                for s, trees in zip(sequences, found, strict=True)]

    def observe(self, rounds):
        for draft in self.drafts:
            draft.observe(rounds)


def union(model, n: int) -> DecodePlan:
    made = [plan(model, draft=spec.format(n)) for spec in DRAFTS]
    made[-1].draft = Union([each.draft for each in made])
    return made[-1]


def count(model, written: Iterator[tuple[str, str]], most: int, end: float) -> tuple[list[str], list[str], dict]:
    """Kinds and prompts; of each draft, size and prompt: tokens and guesses of a round, and how many such there were."""
    made = {(spec, n): plan(model, draft=spec.format(n)) for spec in DRAFTS for n in SIZES}
    made |= {(ANY, n): union(model, n) for n in SIZES}
    found: dict[str, list[list]] = {spec: [[] for _ in SIZES] for spec in (*DRAFTS, ANY)}
    kinds, prompts = [], []
    for kind, prompt in written:
        if time.monotonic() > end:
            break
        kinds.append(kind)
        prompts.append(prompt)
        for (spec, n), each in made.items():
            steps = Counter((len(step.tokens), step.nodes - 1) for step in run(each, [request(model, prompt, max_tokens=most)]))
            found[spec][SIZES.index(n)].append([[*pair, times] for pair, times in sorted(steps.items())])
    return kinds, prompts, found


def show(found: Record, known) -> None:
    curve = known.curves[max(known.curves)] if known else None
    cost = [curve.ratio(1 + n) if curve else 1.0 for n in range(64)]
    m, kinds = found.measured, np.array(found.measured["kinds"])
    print(f"\n{found.settings['part']} {found.settings['asked']}, {len(kinds)} texts; T over T(1) at n guesses: "
          + " ".join(f"{n}: {cost[n]:.2f}" for n in m["sizes"]))
    for name, sizes in m["rounds"].items():
        told: dict[str, list[float]] = {"tokens a pass": [], "gain": [], "foreknown": []}
        for n, prompts in zip(m["sizes"], sizes, strict=True):
            add = lambda of, prompts=prompts, n=n: np.array([sum(of(*r[:2], n) * r[2] for r in rounds) for rounds in prompts])
            over = lambda below, add=add: float(np.mean([add(lambda t, made, n: t)[kinds == kind].sum() /
                                                         add(below)[kinds == kind].sum() for kind in set(kinds)]))
            told["tokens a pass"].append(over(lambda t, made, n: 1))
            told["gain"].append(over(lambda t, made, n: cost[min(n, made)]))
            told["foreknown"].append(over(lambda t, made, n: cost[t - 1]))
        print(f"  {name:26}" + "  ".join(f"{what} {' '.join(f'{x:5.2f}' for x in each)}" for what, each in told.items()))


if __name__ == "__main__":
    sys.exit(main())
