"""Make a model smaller: prune, quantize or factorize it, and recover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lithe.cli._common import JSON, OFFLINE, SEED, THREADS, emit
from lithe.cli._measure import progress

GROUP = "change"
METHOD = Annotated[list[str], typer.Option("--method", help="a step as name:ratio=0.3, name:bits=4, name:bytes=0.6, ...; an "
                                           "importance and an allocation join it by \" + \"; repeats, in order")]
CALIBRATION = Annotated[str | None, typer.Option("--calibration", help="a .txt or .jsonl file, either .gz too: text like what "
                                                 "the model will read")]


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    method: METHOD,
    calibration: CALIBRATION = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="the folder to write")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan and what it predicts; write nothing")] = False,
    tokens: Annotated[int, typer.Option(help="of calibration", min=16)] = 65_536,
    length: Annotated[int, typer.Option(help="tokens of a calibration row", min=4)] = 512,
    dense_zeros: Annotated[bool, typer.Option("--dense-zeros", help="write zeros like other weights, for other programs to "
                                              "read, even where leaving them out is smaller")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model folder of that name")] = False,
    seed: SEED = 0,
    threads: THREADS = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Compress a model by steps under a budget: calibrate, score, allocate, apply, recover, store.

    Interrupted, the same command goes on where it was. The input model is never touched, and no half-written folder is left.
    """
    from lithe.errors import UsageError

    if out is None and not dry_run:
        raise UsageError("say which folder to write (-o OUT), or ask for --dry-run")
    import torch

    from lithe.compress.api import compress, told

    if threads is not None:
        torch.set_num_threads(threads)
    with progress("compressing") as bar:
        found = compress(model, method, calibration=calibration, out=out, tokens=tokens, length=length, seed=seed,
                         dry_run=dry_run, overwrite=overwrite, offline=offline, dense_zeros=dense_zeros,
                         tell=lambda what, done, total: bar(done, total))
    emit(told(found)) if as_json else _show(found.report, [allocation.json() for allocation in found.allocations], dry_run)


def _show(report: dict[str, Any], allocations: list[dict[str, Any]], dry_run: bool) -> None:
    for plan in allocations if dry_run else []:
        print(json.dumps(plan))
    for plan in allocations:
        of = f" of {plan['full']:,.0f}" if plan["full"] > plan["cost"] else ""  # one level for all is all there is
        print(f"{plan['unit']}: {plan['cost']:,.0f}{of} bytes in {len(plan['levels'])} groups, "
              f"{plan['budget']:,.0f} allowed" + (f", dealt by {by}" if (by := plan["notes"].get("by")) else ""))
    for step in report.get("steps", []):
        for line in step.get("health", [])[:5]:
            print(f"note: {line}")
    if "sparse" in report:
        few = report["sparse"]
        print(f"{few['layers']} layers hold only weights that are not zero: {few['bytes']:,} bytes where dense ones take "
              f"{few['bytes_dense']:,} (--dense-zeros writes them all)")
    for said in report.get("predicted", []):
        unknown = "loss" if said["planned"] else "loss and bytes"
        print(f"{said['step']}: " + (f"what it does to {unknown} is not foretold" if said["kl"] is None else
                                     f"about {said['kl']:.4f} nats a token (KL) from the dense model, on calibration text"))
    if report.get("faster", 1) != 1:
        print(f"decoding: about {report['faster']:g} times as fast, where reading weights is what takes time")
    if "bytes" in report:
        before = f" of {report['bytes_before']:,} before" if report.get("bytes_before") else ""
        print(f"{'would take' if dry_run else 'wrote'} {report['bytes']:,} bytes{before}"
              + (f" to {report['out']}: {report['bits']} bits for each weight that there was" if "out" in report else ""))
