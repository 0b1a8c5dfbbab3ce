"""Products with weights that are mostly zero, dense ones and PyTorch's CSR at the shapes of a model: one JSON line a cell.

    python tools/sparse_speed.py [--rows 1 8] [--shares 0.5 0.7 0.9 2:4] [--layers 30] [--threads 2] [--forms auto]

Every product of every layer once is a pass, over weights of its own in memory: what is read is what is timed. All take turns.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lithe.compress.masking import of_pattern, of_share
from lithe.kernels import library, linear, pack, sparse

SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))  # of a layer at 135M


def masked(share: str, dice: torch.Generator) -> list[torch.Tensor]:
    """A layer's matrices with this share of zeros, or this pattern."""
    made = [torch.randn(n, k, generator=dice) / k**0.5 for n, k in SHAPES]
    keep = lambda w: of_pattern(w.abs(), share) if ":" in share else of_share(w.abs(), float(share), "layer")
    return [torch.where(keep(w), w, 0.0) for w in made]


def dense_pass(weights: list[torch.Tensor], kind: str, layers: int, rows: int, threads: int) -> Callable[[], None]:
    found: Any = library.load()
    packs = [pack.pack(w, kind) for w in weights]
    every = [pack.Packed(p.data.clone(), kind, p.n, p.k, p.group) for _ in range(layers) for p in packs]
    calls = []
    for p in every:
        x, y = torch.randn(rows, p.k), torch.empty(rows, p.n)
        calls.append(((p.pointer, x.data_ptr(), p.k, None, y.data_ptr(), p.n, rows, threads), p, x, y))
    linear.linear(every[0], torch.randn(1, every[0].k))
    return lambda: [found.lib.lithe_linear(*call[0]) for call in calls] and None


def sparse_pass(weights: list[torch.Tensor], kind: str, layers: int, rows: int, threads: int, form: str) -> Callable[[], None]:
    found: Any = library.load()
    packs = [sparse.pack(w, kind) for w in weights]
    strips = {"auto": None, "bitmap": False, "strips": True}[form]
    every = [copy.deepcopy(sparse.ready(p, strips)) for _ in range(layers) for p in packs]
    calls = []
    for p in every:
        x, y = torch.randn(rows, p.k), torch.empty(rows, p.n)
        calls.append(((ctypes.byref(p.struct), x.data_ptr(), p.k, None, y.data_ptr(), p.n, rows, threads),
                      p, x, y))
    sparse.linear(every[0], torch.randn(1, every[0].k))
    return lambda: [found.lib.lithe_sparse(*call[0]) for call in calls] and None


def csr_pass(weights: list[torch.Tensor], layers: int, rows: int) -> Callable[[], None]:
    made = [w.to_sparse_csr() for w in weights]
    copied = lambda w: torch.sparse_csr_tensor(w.crow_indices().int(), w.col_indices().int(), w.values().clone(), w.shape)
    every = [(copied(w), torch.randn(w.shape[1], rows)) for _ in range(layers) for w in made]
    return lambda: [w @ x for w, x in every] and None


def cell(share: str, rows: int, asked: argparse.Namespace) -> dict[str, Any]:
    weights = masked(share, torch.Generator().manual_seed(0))
    passes = {kind: dense_pass(weights, kind, asked.layers, rows, asked.threads) for kind in asked.dense}
    passes |= {f"{kind}:{way}": sparse_pass(weights, kind, asked.layers, rows, asked.threads, way)
               for kind in sparse.KINDS for way in asked.forms}
    if asked.csr:
        passes["csr_fp32"] = csr_pass(weights, asked.layers, rows)
    times: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(asked.repeats + 1):
        for name, run in passes.items():
            run()  # threads of PyTorch that still wait for the product before would share the cores
            began = time.perf_counter()
            run()
            if turn:
                times[name].append(1000 * (time.perf_counter() - began))
    nonzero, total = sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)
    return {"share": share, "rows": rows, "zeros": round(1 - nonzero / total, 4), "threads": asked.threads,
            "ms": {name: round(statistics.median(found), 3) for name, found in times.items()},
            "low": {name: round(min(found), 3) for name, found in times.items()}}


COLOURS = {"sparse_fp32": ("#1f6feb", "fp32"), "sparse_bf16": ("#d1242f", "bf16"), "csr_fp32": ("#6e7781", "CSR, fp32")}


def figure(cells: list[dict[str, Any]]) -> str:
    """Dense time over sparse time by the share of zeros, as SVG: a panel for each number of rows."""
    wide, high, left = 330, 230, 40
    x = lambda zeros: left + (zeros - 0.25) / 0.75 * (wide - left - 10)
    y = lambda ratio: high - 30 - math.log2(max(ratio, 1 / 8) * 8) / math.log2(8 * 16) * (high - 50)
    rows = sorted({cell["rows"] for cell in cells})
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide * len(rows)}" height="{high}" font-family="sans-serif" '
           'font-size="11">']
    for at, count in enumerate(rows):
        own = [cell for cell in cells if cell["rows"] == count and ":" not in cell["share"]]
        out.append(f'<g transform="translate({at * wide},0)"><text x="{left}" y="14">{count} row{"s" * (count > 1)}: '
                   "dense time / sparse time</text>")
        for ratio in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16):
            out.append(f'<path d="M{left} {y(ratio):.1f}H{wide - 10}" stroke="{"#57606a" if ratio == 1 else "#d0d7de"}"/>'
                       f'<text x="4" y="{y(ratio) + 4:.1f}">{ratio:g}</text>')
        out += [f'<text x="{x(z) - 10:.1f}" y="{high - 12}">{z:.0%}</text>' for z in (0.3, 0.5, 0.7, 0.9)]
        for i, (name, (colour, label)) in enumerate(COLOURS.items()):
            points = [(x(cell["zeros"]), y(ratios(cell)[name])) for cell in own if name in ratios(cell)]
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
                       f'<text x="{left + 8}" y="{30 + 13 * i}" fill="{colour}">{label}</text>')
        out.append("</g>")
    return "\n".join([*out, "</svg>"]) + "\n"


def ratios(cell: dict[str, Any]) -> dict[str, float]:
    """Dense time over the time of each other way, of the same precision."""
    ms = cell["low"]
    found = {"sparse_fp32": ("fp32", "sparse_fp32:auto"), "sparse_bf16": ("bf16", "sparse_bf16:auto"),
             "csr_fp32": ("fp32", "csr_fp32")}
    return {name: ms[dense] / ms[own] for name, (dense, own) in found.items() if own in ms}


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    read.add_argument("--shares", nargs="+", default=["0.3", "0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "2:4"])
    read.add_argument("--layers", type=int, default=30)
    read.add_argument("--threads", type=int, default=2)
    read.add_argument("--repeats", type=int, default=7)
    read.add_argument("--forms", nargs="+", default=["auto"], choices=["auto", "bitmap", "strips"])
    read.add_argument("--dense", nargs="*", default=["fp32", "bf16"])
    read.add_argument("--csr", action="store_true")
    read.add_argument("--draw", type=Path, help="read cells from this file and write the figure, instead of measuring")
    asked = read.parse_args()
    if asked.draw:
        print(figure([json.loads(line) for line in asked.draw.read_text().splitlines()]), end="")
        return
    torch.set_num_threads(asked.threads)
    for rows in asked.rows:
        for share in asked.shares:
            print(json.dumps(cell(share, rows, asked)), flush=True)


if __name__ == "__main__":
    main()
