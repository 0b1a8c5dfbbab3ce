"""Measure the policies, caches and trained models of the diffusion room, into docs/ledger-parallel.jsonl.

    tools/parallel/measure.py [PART ...] [--model zoo:tiny-diffusion] [--rows parallel_bench_data.zip]

Parts that are named run, else all; what the ledger holds is not run again, and a fit that was made is not made again. Counts
are exact on any machine; of parts whose name begins with `speed` the times are meant, which want a quiet one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence as Seq
from pathlib import Path
from typing import Any

import measure_long
import measure_trained

from lithe.bench.ledger import Ledger, Record
from lithe.bench.parallel import _suite as suite
from lithe.bench.parallel._ar import Rival
from lithe.bench.parallel._published import published
from lithe.bench.parallel._rows import Row, good, rows
from lithe.bench.parallel._suite import Course, best, cells, policies
from lithe.bench.parallel._tasks import END, TASKS
from lithe.cli import run
from lithe.model.load import load

ROOT = Path(__file__).resolve().parents[2]
LEDGER, WORK = ROOT / "docs" / "ledger-parallel.jsonl", Path(".lithe") / "parallel"
LEARNED = [task for task in TASKS if task != "square"]  # the zoo's models never saw a square
MOST_LOST = 1.0  # points
STEPS, ROWS = {"dparallel": 400, "dscd": 300, "learn2pd": 2000, "cj_grpo": 100}, 16
BLOCKS, MIXED, RIVAL = "zoo:tiny-block", "zoo:tiny-diffusion-moe", "zoo:tiny-ar"
PLAIN: list[str] = [""]


class Desk:
    """The model that is measured, the ledger, and what was trained from that model."""

    def __init__(self, name: str, ledger: Path):
        self.name, self.ledger = name, Ledger(ledger)

    def run(self, tasks: Seq[str], methods: Seq[str], count: int = 100, *, part: str = "", model: str = "", label: str = "",
            dtype: str = "auto", given: suite.Given | None = None, seed: int = 0, **settings: Any) -> list[Record]:
        """Records of these cells. model: another than the desk's own, under this label."""
        target = load(model or self.name, dtype=dtype)
        target.source = label or self.name
        kind = Rival if target.config.attends == "causal" else Course
        course = kind(target, self.ledger, lambda line: print(f"{part}: {line}", flush=True), given=given or {})
        return course.run(list(cells(tasks, methods, count, seed, given=given, part=part, **settings)))

    def able(self) -> list[str]:
        """Tasks on which one token a step is right for 80 % and more."""
        return good(self.run(LEARNED, PLAIN))

    def fitted(self, spec: str, name: str, seed: int = 0, model: str = "", **more: str) -> str:
        """The folder of a fit, of the desk's own model or another, made where it is not there yet."""
        folder = WORK / Path(self.name.removeprefix("zoo:")).name / name
        if not folder.exists():
            method = spec.partition(":")[0]
            asked = {"--steps": str(STEPS[method]), "--rows": str(ROWS), "--seed": str(seed), "--examples": "1500",
                     "--data": f"tasks:{','.join(LEARNED)}", "-o": str(folder)} | more
            if run(["fit", model or self.name, "--method", spec, *(word for pair in asked.items() for word in pair)]):
                raise SystemExit(f"{spec}: no fit")
        return str(folder)

    def free(self) -> Row:
        """Of the shipped policies the one with fewest passes that loses a point at most, on the first draw of problems."""
        found = rows(self.run(LEARNED, policies()), self.able(), best())
        held = [row for row in found if row.lost <= MOST_LOST and row.method != best() and not row.error]
        return min(held, key=lambda row: row.passes)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("part", nargs="*", choices=[[], *PARTS], default=[])
    asked.add_argument("--model", default="zoo:tiny-diffusion")
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--rows", type=Path, help="ParallelBench's archive; its part is left out without")
    given = asked.parse_args()
    desk = Desk(given.model, given.ledger)
    for name in given.part or PARTS:
        if name == "published" and given.rows is None:
            print("published: not run: --rows names no archive", file=sys.stderr)
            continue
        PARTS[name](desk, given)
    return 0


def policy_grid(desk: Desk, given: argparse.Namespace) -> None:
    """All shipped policies on all tasks; the best that loses little, chosen there, once more on problems of another draw."""
    desk.run(LEARNED, policies())
    desk.run(LEARNED, ["", best(), "confident", "freedave", desk.free().method], seed=1)


def published_rows(desk: Desk, given: argparse.Namespace) -> None:
    """ParallelBench's own rows, renamed."""
    asked = published(given.rows).problems
    steady = [f"steady:tokens={k}" for k in (2, 4, 8)]
    methods = ["", best(), *steady, "confident", "confident:floor=0.5", "freedave", desk.free().method]
    desk.run(list(asked), list(dict.fromkeys(methods)), given=asked, part="published")


def closed_forms(desk: Desk, given: argparse.Namespace) -> None:
    """Sampling in random order, so many places of a list of six a step; what lies behind the list is filled after it."""
    methods = [f"steady:tokens={k},by=chance + equal_blocks:size=6" for k in (1, 2, 3, 6)]
    desk.run(["copy", "shuffle", "replace_random"], methods, 500, temperature=1.0, items=6, part="closed")


def filters(desk: Desk, given: argparse.Namespace) -> None:
    """Learn2PD's filter of two widths, the same with labels of other steps, at several floors."""
    made = {"learn2pd": "filter-32", "learn2pd:shuffled=true": "filter-32-shuffled",
            "learn2pd:size=8": "filter-8", "learn2pd:size=8,shuffled=true": "filter-8-shuffled"}
    folders = [desk.fitted(spec, name) for spec, name in made.items()]
    methods = [f"learn2pd:floor={floor},heads={folder}" for folder in folders for floor in ("0.96", "0.9", "0.8")]
    desk.run(desk.able(), methods, part="learn2pd")


def long_canvas(desk: Desk, given: argparse.Namespace) -> None:
    """A canvas four times as long as answers: ends of text cut it, or are held back."""
    methods = ["", "end_of_text", "equal_blocks:size=8", "equal_blocks:size=8 + end_of_text", "eoser", "eoser:low=0.01",
               "eoser:low=0.01,ascending=true", "eoser:low=1,ascending=true"]
    desk.run(desk.able()[::2], methods, 25, places=32, part="long")


def neighbours(desk: Desk, given: argparse.Namespace) -> None:
    """LocalLeap at more radii."""
    desk.run(LEARNED, ["localleap:radius=2", "localleap:radius=8"], part="radius")


def halving_blocks(desk: Desk, given: argparse.Namespace) -> None:
    """Ascending steps over the whole canvas, and over blocks that halve."""
    whole = "eoser:low=0.01,ascending=true"
    desk.run(desk.able(), [whole, *(f"{whole} + halving_blocks:blocks={blocks}" for blocks in (2, 3))], part="halving")


def ending_blocks(desk: Desk, given: argparse.Namespace) -> None:
    """AdaBlock where the one delimiter there is, the end of text, may close a block; at a floor of 2 blocks are equal ones."""
    fixed = [f"confident + equal_blocks:size={size}" for size in (4, 8, 16)]
    own = [f"confident + adablock:delimiters={END},size={size}" for size in (4, 8, 16)]
    desk.run(desk.able(), [*fixed, *own, f"{own[1]},floor=2"], 25, places=32, part="blocks")


def block_model(desk: Desk, given: argparse.Namespace) -> None:
    """A block model that verifies its own drafts."""
    routes = [f"s2d2:route={route}" for route in ("static", "always", "span")]
    methods = ["", *routes, *(f"{each} + confident:floor={floor}" for floor in ("0.7", "0.85", "0.9")
                              for each in ("s2d2:route=static", "s2d2:route=dynamic"))]
    methods += ["confident", "confident:floor=0.85", "confident:floor=0.7", "prefix_cache + confident", "freedave:drafts=4"]
    desk.run(LEARNED, methods, model=BLOCKS, label=BLOCKS, part="blocks model")


def experts(desk: Desk, given: argparse.Namespace) -> None:
    """Experts shared by a pass's places: as many by votes as names take, and half of all."""
    names = [f"confident + des:by=seq,each={each}" for each in (1, 2)]
    found = desk.run(desk.able(), ["confident", *names], 50, model=MIXED, label=MIXED, part="experts")
    model = load(MIXED).config
    ran = lambda method: (sum(r.measured["experts"] for r in found if r.method == method)
                          / sum(sum(r.measured["passes"]) for r in found if r.method == method) / model.layers / model.experts)
    shares = ["1.0", "0.5", *(f"{ran(method):.3f}" for method in names)]
    desk.run(desk.able(), [f"confident + des:share={share}" for share in shares], 50, model=MIXED, label=MIXED, part="experts")


def rival(desk: Desk, given: argparse.Namespace) -> None:
    """A model of the same size and tasks that reads from left to right, plainly and by drafts that need no weights."""
    desk.run(LEARNED, ["", "prompt_lookup", "suffix", "token_recycling", "lookahead"], model=RIVAL, label=RIVAL, part="rival")


def exact(desk: Desk, given: argparse.Namespace) -> None:
    """FreeDave in float64, where equal texts are no luck of rounding."""
    desk.run(LEARNED, ["", *(f"freedave:drafts={drafts}" for drafts in (2, 4, 8))], 50, dtype="fp64", part="float64")


def speed(desk: Desk, given: argparse.Namespace) -> None:
    """Tokens a second of the best policies beside one token a step, three turns."""
    for turn in range(3):
        desk.run(desk.able(), ["", "confident", desk.free().method], 64, seed=2 + turn, part="speed")


PARTS: dict[str, Callable[[Desk, argparse.Namespace], None]] = {
    "grid": policy_grid, "published": published_rows, "closed": closed_forms, "filters": filters, "long": long_canvas,
    "neighbours": neighbours, "blocks": ending_blocks, "halving": halving_blocks, "exact": exact, "block-model": block_model,
    "experts": experts, "rival": rival, "speed": speed} | measure_trained.PARTS | measure_long.PARTS

if __name__ == "__main__":
    sys.exit(main())
