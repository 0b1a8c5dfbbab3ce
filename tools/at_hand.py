"""What holds a pass: its blocks as they are, the same blocks with all weights in the cache, and what reading alone takes.

    tools/at_hand.py [PRECISION ...] [--rounds 15] [--ledger docs/ledger-engines.jsonl]

The shape of SmolLM-135M with random weights, 256 tokens behind, no output matrix. At hand: every layer is given the weights of
the first. What a pass takes then, no overlap of reading and multiplying can save; what it takes above the larger of this and of
reading could be saved by overlap alone. Ways take turns; bandwidth and peaks are measured in the same rounds.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import torch

from lithe.bench.engines._machine import Engine
from lithe.bench.engines._rows import Ratio, ratio
from lithe.bench.engines._target import SHAPES
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.kernels import block
from lithe.model import fast
from lithe.model.decoder import NONE, Decoder
from lithe.model.express import quickest
from lithe.model.linear import PackedLinear
from lithe.model.runtime import Bench

ROWS, WARM, REPEATS = (1, 2, 4, 8, 16, 32, 64), 2, 3


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("precisions", nargs="*", default=["int8", "int4", "bf16", "fp32"])
    asked.add_argument("--rounds", type=int, default=15)
    asked.add_argument("--ledger", default="docs/ledger-engines.jsonl")
    given = asked.parse_args()
    for precision in given.precisions:
        model = fast.fuse(Decoder(SHAPES["135m"]).init(0).eval(), precision)
        found = profile(model, precision, given.rounds)
        Ledger(given.ledger).append(record("at hand", model, measured=found, inputs="135m", parts=[model.fast],
                                           settings={"rounds": given.rounds, "behind": 256}))
        show(precision, found)


def profile(model: Decoder, kind: str, rounds: int) -> dict:
    """Medians in ms by rows, and by how much a pass lies above either bound: (median, low, high)."""
    weights = sum(m.data.nbytes for name, m in model.named_modules() if isinstance(m, PackedLinear) and "layers" in name)
    machine, took = Engine(threads=model.threads), {"blocks": {n: [] for n in ROWS}, "hand": {n: [] for n in ROWS}}
    reading, peaks = [], []
    with Bench(model) as bench:
        seconds(bench, 1)
        stack = bench.cache.home.way.made.stack
        for n in ROWS:
            seconds(bench, n)
        for turn in range(rounds):
            for n in ROWS[:: 1 if turn % 2 else -1]:
                took["blocks"][n].append(seconds(bench, n))
                with at_hand(stack):
                    took["hand"][n].append(seconds(bench, n))
            reading.append(weights / machine.bandwidth(weights))
            peaks.append(machine.peak(kind))
    found = {name: {str(n): median(times) * 1e3 for n, times in by.items()} for name, by in took.items()}
    whole, hand = took["blocks"], took["hand"]
    larger = lambda n, other: [max(pair) for pair in zip(hand[n], other, strict=True)]
    over = lambda times, bounds: {str(n): ratio(times[n], bounds(n)).json() for n in ROWS}
    return found | {
        "reading": median(reading) * 1e3, "GB/s": weights / median(reading) / 1e9, "Gop/s": median(peaks) / 1e9,
        "weights": weights, "over one row": over(whole, lambda n: whole[1]),
        "at hand over one row": over(hand, lambda n: whole[1]),
        "over the larger of hand and one row": over(whole, lambda n: larger(n, whole[1])),
        "over the larger of hand and reading": over(whole, lambda n: larger(n, reading))}


def seconds(bench: Bench, rows: int) -> float:
    """Of one pass among its like: behind one of other rows it takes longer."""
    times = []
    for _ in range(WARM + REPEATS):
        start = perf_counter()
        quickest(bench.model, [bench.ids[:rows]], bench.cache, NONE)
        times.append(perf_counter() - start)
    return median(times[WARM:])


@contextmanager
def at_hand(stack: block.Stack) -> Iterator[None]:
    """Every layer of a stack reads the first one's weights."""
    own = list(stack.layer_array)
    stack.layer_array[:] = own[:1] * len(own)
    yield
    stack.layer_array[:] = own


def show(precision: str, found: dict) -> None:
    heads = [name for name in found if "over" in name]
    print(f"{precision}: reading {found['reading']:.2f} ms at {found['GB/s']:.0f} GB/s, peak {found['Gop/s']:.0f} Gop/s")
    print("  rows  blocks  hand;", "; ".join(heads))
    for n in map(str, ROWS):
        parts = [str(Ratio(*found[name][n])) for name in heads]
        print(f"  {n:>4} {found['blocks'][n]:7.2f} {found['hand'][n]:5.2f};", "; ".join(parts))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
