"""Measure methods beside plain decoding: passes, speed, sameness."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.cli._common import DEVICE, DTYPE, JSON, METHODS, OFFLINE, SEED, THREADS, open_model, table
from lithe.cli._compression import compressed
from lithe.cli._engines import ENGINE, PRECISION, ROUNDS, SUITE, checked, compare
from lithe.cli._filling import PLACES, PROBLEMS, ROWS, TASK, paralleled
from lithe.cli._json import SCHEMAS, WRITE, structured
from lithe.cli._matrix import PLAN, RUNS
from lithe.cli._measure import LEDGER, LIMIT, NO_LEDGER, PROMPTS, chosen_kinds, open_ledger, progress
from lithe.cli._serving import PART, served
from lithe.cli._tuning import SHIFT, tuned

if TYPE_CHECKING:
    from lithe.bench.rows import Row

GROUP = "prove"
HEADS = ("method", "tokens/pass", "tokens/s", "speedup", "95 %", "not looping", "draft", "same", "looping", "peak MB")


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="a folder, zoo:NAME or a hub id; for engines and serving also shape:135m")],
    method: METHODS = None,
    prompts: PROMPTS = None, limit: LIMIT = None,
    max_tokens: Annotated[int, typer.Option(help="most tokens for each prompt", min=1)] = 128,
    repeats: Annotated[int, typer.Option(help="times that every prompt is run by every method", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="prompts decoded together", min=1)] = 1,
    accept: Annotated[str | None, typer.Option(help="the acceptance rule where sampling, for all methods")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy", min=0)] = None,
    top_k: Annotated[int | None, typer.Option(help="sample among the k likeliest")] = None,
    top_p: Annotated[float | None, typer.Option(help="sample among the likeliest that hold this mass")] = None,
    min_p: Annotated[float | None, typer.Option(help="leave out what is below this share of the likeliest")] = None,
    warp: Annotated[list[str] | None, typer.Option(help="any other change of the law, as name:knob=value; repeats")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on to --max-tokens past an end of text")] = False,
    suite: SUITE = "methods", engine: ENGINE = None, precision: PRECISION = None, rounds: ROUNDS = 9,
    plan: PLAN = None, shift: SHIFT = None, runs: RUNS = None, part: PART = None, schemas: SCHEMAS = None, write: WRITE = 10,
    task: TASK = None, problems: PROBLEMS = 100, places: PLACES = 0, rows: ROWS = None,
    as_json: JSON = False, ledger: LEDGER = None, no_ledger: NO_LEDGER = False,
    seed: SEED = 0, dtype: DTYPE = "auto", device: DEVICE = "cpu", threads: THREADS = None, offline: OFFLINE = False,
) -> int:
    """Run every prompt by plain decoding and by each method in turn, and compare tokens, passes and time.

    Reading a prompt is timed apart and is no part of the speeds. With --json each row is one JSON line; all go to the ledger.
    The exit code is 1 where a method failed, 130 where Ctrl-C ended the run; what was finished by then is reported. --suite
    engines: beside transformers and llama.cpp, in every precision. --suite tuning trains the plan's methods on unknown texts;
    --method then names some of the plan, as for --suite compress, which tells what each way of compressing loses. --suite
    serving measures the engine of `lithe serve`, --suite json what schemas are enforced, --suite parallel what a diffusion
    model loses by filling several places at once.
    """
    from lithe.bench.runner import Stopped, bench

    checked(context, suite)
    if suite != "methods":
        return _suite(suite, context.params)
    asked, book = chosen_kinds(prompts, limit), open_ledger(ledger, no_ledger)
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    try:
        with progress("measuring") as tell:
            told = bench(target, method or (), [prompt for prompt, _ in asked], kinds=[kind for _, kind in asked], batch=batch,
                         max_tokens=max_tokens, repeats=repeats, accept=accept, seed=seed, ignore_eos=ignore_eos, ledger=book,
                         warps=warp or (), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, progress=tell)
    except Stopped as stop:
        _tell(stop.rows, as_json)
        return 130
    _tell(told, as_json)
    return 1 if any(row.error for row in told) else 0


def _suite(suite: str, given: dict[str, Any]) -> int:
    """Another suite, told the options that are its own."""
    model = given["model"]
    asked = {name: given[name] for name in ("threads", "offline", "as_json")}
    asked["book"] = open_ledger(given["ledger"], given["no_ledger"])
    several = lambda name: given[name] or ()
    if suite == "tuning":
        return tuned(model, methods=several("method"), shifts=several("shift"), plan=given["plan"],
                     runs=given["runs"], **asked)
    if suite == "compress":
        return compressed(model, methods=several("method"), plan=given["plan"], runs=given["runs"], **asked)
    if suite == "serving":
        return served(model, parts=several("part"), dtype=given["dtype"], **asked)
    if suite == "parallel":
        own = {name: given[name] for name in ("problems", "places", "rows", "seed", "dtype")}
        return paralleled(model, methods=several("method"), tasks=several("task"), **own, **asked)
    if suite == "json":
        own = {name: given[name] for name in ("write", "limit", "max_tokens", "seed", "dtype", "device")}
        return structured(model, schemas=several("schemas"), **own, **asked)
    return compare(model, engines=several("engine"), precisions=several("precision"), rounds=given["rounds"],
                   prompts=given["prompts"], limit=given["limit"], **asked)


def _tell(rows: list[Row], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print(json.dumps(row.json(), ensure_ascii=False))
    else:
        _show(rows)
    _warn(rows)


def _show(rows: list[Row]) -> None:
    plain = rows[0]
    print(f"{plain.prompts} prompts, {plain.tokens or 0} tokens by plain decoding, repeats: {plain.repeats}; "
          f"reading a prompt takes {1000 * (plain.prefill_s or 0):.1f} ms and is left out of the speeds")
    table(HEADS, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str | None]:
    if not row.tokens:
        return [row.method, *["-"] * (len(HEADS) - 1)]
    low, high = row.speedup_interval or (None, None)
    return [row.method + ("" if row.lossless else " (lossy)"), f"{row.tokens_per_pass:.2f}", f"{row.tokens_per_s:.1f}",
            f"{row.speedup:.2f} x", "-" if low is None else f"{low:.2f} - {high:.2f}",
            "-" if row.speedup_nonlooping is None else f"{row.speedup_nonlooping:.2f} x", f"{row.draft_share:.0%}",
            "sampled" if row.same is None else f"{row.same}/{row.of}", f"{row.looping:.0%}", f"{row.peak_rss_mb:.0f}"]


def _warn(rows: list[Row]) -> None:
    """What a reader must know before believing the rows, on standard error."""
    tell = lambda text: print(text, file=sys.stderr)
    for row in rows:
        if row.error:
            tell(f"failed: {row.method}: {row.error}")
        elif not row.lossless:
            tell(f"not lossless: {row.method} may change the output")
        elif row.same is not None and row.same < row.of:
            tell(f"differs: {row.method} promises plain decoding's tokens but changed {row.of - row.same} of {row.of} texts; "
                 f"run: lithe doctor MODEL --method {row.method}")
    if rows[0].disturbed:
        tell(f"disturbed: something else ran on this machine, so believe no time above (a fork and join of threads took up to "
             f"{rows[0].join_max_us:.0f} us, {rows[0].join_stalled:.0%} of the time was lost in stalls)")
    if rows[0].interrupted:
        tell(f"interrupted: the rows cover the {rows[0].prompts} prompts that every method had finished")
