"""What holds a pass: its blocks as they are, with all weights in the cache, without their products; and what reading takes.

    tools/at_hand.py [PRECISION ...] [--layers 30] [--rounds 15] [--ledger docs/ledger-engines.jsonl]

The shape of SmolLM-135M with random weights, 256 tokens behind, no output matrix. At hand: every layer is given the weights of
the first. What a pass takes then, no overlap of reading and multiplying can save. The rest: matrices without columns, so
attention, norms and waits are left: a pass that hides its products behind reading takes reading and the rest. Reading is of
weights, keys and values; with twice the layers none of them are left in the last cache from one pass to the next. Ways take
turns; bandwidth and peaks are measured in the same rounds.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import addressof
from dataclasses import replace
from functools import partial
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

ROWS, BEHIND, WARM, REPEATS = (1, 2, 4, 8, 16, 32, 64), 256, 2, 3


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("precisions", nargs="*", default=["int8", "int4", "bf16", "fp32"])
    asked.add_argument("--layers", type=int, default=SHAPES["135m"].layers)
    asked.add_argument("--rounds", type=int, default=15)
    asked.add_argument("--ledger", default="docs/ledger-engines.jsonl")
    given = asked.parse_args()
    for precision in given.precisions:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16  # of the cache, as `load` has it
        model = fast.fuse(Decoder(replace(SHAPES["135m"], layers=given.layers)).init(0).to(dtype).eval(), precision)
        found = profile(model, precision, given.rounds)
        Ledger(given.ledger).append(record("at hand", model, measured=found, inputs="135m", parts=[model.fast],
                                           settings={"rounds": given.rounds, "behind": BEHIND, "layers": given.layers}))
        show(precision, found)


def profile(model: Decoder, kind: str, rounds: int) -> dict:
    """Medians in ms by rows, and by how much a pass lies above what it is held by: (median, low, high)."""
    weights = sum(m.data.nbytes for name, m in model.named_modules() if isinstance(m, PackedLinear) and "layers" in name)
    machine, took = Engine(threads=model.threads), {way: {n: [] for n in ROWS} for way in ("blocks", "hand", "rest")}
    reading, peaks = [], []
    with Bench(model) as bench:
        seconds(bench, 1)
        stack, cache = bench.cache.home.way.made.stack, bench.cache
        own, read = list(stack.layer_array), weights + sum(t[:, :, :BEHIND].nbytes for t in (*cache.k, *cache.v))
        bare = without_columns(stack.weights[0])
        ways = {"blocks": own, "hand": own[:1] * len(own), "rest": [addressof(bare)] * len(own)}
        for n in ROWS:
            seconds(bench, n)
        for turn in range(rounds):
            for n in ROWS[:: 1 if turn % 2 else -1]:
                for way, layers in ways.items():
                    with given(stack, layers):
                        took[way][n].append(seconds(bench, n))
            reading.append(read / machine.bandwidth(read))
            peaks.append(machine.peak(kind))
    whole, hand, rest = took.values()
    over = lambda times, bounds: {str(n): ratio(times[n], bounds(n)).json() for n in ROWS}
    both = lambda how, by, n: [how(pair) for pair in zip(by[n], reading, strict=True)]
    return {name: {str(n): median(times) * 1e3 for n, times in by.items()} for name, by in took.items()} | {
        "reading": median(reading) * 1e3, "GB/s": read / median(reading) / 1e9, "Gop/s": median(peaks) / 1e9, "bytes": read,
        "over one row": over(whole, lambda n: whole[1]), "at hand over one row": over(hand, lambda n: hand[1]),
        "over the larger of hand and reading": over(whole, partial(both, max, hand)),
        "over reading and the rest": over(whole, partial(both, sum, rest))}


def seconds(bench: Bench, rows: int) -> float:
    """Of one pass among its like: behind one of other rows it takes longer."""
    times = []
    for _ in range(WARM + REPEATS):
        start = perf_counter()
        quickest(bench.model, [bench.ids[:rows]], bench.cache, NONE)
        times.append(perf_counter() - start)
    return median(times[WARM:])


def without_columns(layer: block.LayerWeights) -> block.LayerStruct:
    """The same layer, whose products have nothing to do: what they would have written stays as it was."""
    bare = block.LayerStruct.from_buffer_copy(layer.struct)
    for name in block.MATRICES:
        getattr(bare, name).n = 0
    return bare


@contextmanager
def given(stack: block.Stack, layers: Sequence[int]) -> Iterator[None]:
    """The layers of a stack are those at these addresses."""
    own = list(stack.layer_array)
    stack.layer_array[:] = list(layers)
    yield
    stack.layer_array[:] = own


def show(precision: str, found: dict) -> None:
    heads = [name for name in found if "over" in name]
    print(f"{precision}: reading {found['reading']:.2f} ms at {found['GB/s']:.0f} GB/s, peak {found['Gop/s']:.0f} Gop/s")
    print("  rows  blocks  hand  rest;", "; ".join(heads))
    for n in map(str, ROWS):
        parts = [str(Ratio(*found[name][n])) for name in heads]
        print(f"  {n:>4} {found['blocks'][n]:7.2f} {found['hand'][n]:5.2f} {found['rest'][n]:5.2f};", "; ".join(parts))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
