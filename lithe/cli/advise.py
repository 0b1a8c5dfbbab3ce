"""Find the way to decode that pays on your model, machine and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from lithe.cli._common import DEVICE, DTYPE, JSON, METHODS, OFFLINE, SEED, THREADS, emit, open_model, table
from lithe.cli._measure import LEDGER, LIMIT, PROMPTS, chosen_prompts, open_ledger, progress
from lithe.errors import UsageError

if TYPE_CHECKING:
    from lithe.bench.advise import Advice, Advised

GROUP = "prove"
HEADS = ("method", "tokens/pass", "rows", "draft", "predicted", "measured", "why")


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    method: METHODS = None,
    prompts: PROMPTS = None,
    limit: LIMIT = None,
    draft_model: Annotated[str | None, typer.Option(help="small model of the same tokenizer, for drafts that need it")] = None,
    max_tokens: Annotated[int, typer.Option(help="most tokens for each prompt", min=8)] = 64,
    trials: Annotated[int, typer.Option(help="prompts that predictions are made from", min=1)] = 4,
    confirm: Annotated[int, typer.Option(help="how many of the best to confirm by running them", min=0)] = 2,
    lossy: Annotated[bool, typer.Option("--lossy", help="consider methods that may change the output")] = False,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy", min=0)] = None,
    write: Annotated[Path | None, typer.Option(help="write the winning plan as a recipe, NAME.toml")] = None,
    as_json: JSON = False,
    ledger: LEDGER = None,
    seed: SEED = 0,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
) -> None:
    """Predict what every method gives here from the model's cost curve and a short trial, and run the best to be sure.

    Without --method, all drafts that can run are tried, in several sizes. Where none pays, plain decoding is the advice.
    """
    from lithe.bench.advise import advise

    if write is not None and (write.suffix != ".toml" or write.exists()):
        raise UsageError(f"--write {write}: " + ("it is there already" if write.exists() else "a recipe's name ends in .toml"))
    asked = chosen_prompts(prompts, limit)
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    with progress("trying") as tell:
        found = advise(target, asked, method or (), second=draft_model, max_tokens=max_tokens, trials=trials, confirm=confirm,
                       lossy=lossy, seed=seed, progress=tell, temperature=temperature,
                       ledger=open_ledger(ledger, False) if ledger else None)
    if as_json:
        emit(found.json())
    else:
        _show(found, model)
    if write is not None:
        write.write_text(recipe(found, model), encoding="utf-8")
        if not as_json:
            print(f"written: {write}; lithe generate {model} PROMPT --recipe {write}")


def recipe(found: Advised, model: str) -> str:
    """The plan as TOML; plain decoding needs no draft."""
    best = found.best
    gain = f"{best.worth:.2f} x plain decoding" if best else "no draft pays"
    lines = [f"summary = {json.dumps(f'lithe advise for {model}: {gain}', ensure_ascii=False)}"]
    return "\n".join(lines + ([f"draft = {json.dumps(best.spec)}"] if best else [])) + "\n"


def _show(found: Advised, model: str) -> None:
    from lithe.bench.advise import CLOSE

    costs = ", ".join(f"T({n}) {found.curve.ratio(n):.2f}" for n in (2, 4, 8, 16, 32) if n <= found.curve.rows[-1])
    print(f"A pass of one row takes {found.curve.seconds(1) * 1e3:.2f} ms here; more rows in plain passes: {costs}")
    table(HEADS, [_cells(way) for way in [found.plain, *found.ways]])
    if found.errors:
        print(f"{found.close} of {len(found.errors)} predictions that were put to the test are within {CLOSE:.0%} of it")
    if found.disturbed:
        print("disturbed: something else ran on this machine, so believe no time above")
    best = found.best
    print(f"advice: lithe generate {model} PROMPT --method {quote(best.spec)}" if best
          else "advice: plain decoding; no method is surely faster here")


def _cells(way: Advice) -> list[str]:
    if way.problem is not None:
        return [way.method, "-", "-", "-", "-", "-", way.problem]
    low, high = way.interval or (0.0, 0.0)
    measured = "-" if way.measured is None else f"{way.measured:.2f} x" + (f" ({low:.2f} - {high:.2f})" if way.interval else "")
    return [way.method, f"{way.tokens_per_pass:.2f}", f"{way.rows_per_pass:.1f}", f"{way.draft_s / way.seconds:.0%}",
            f"{way.speedup:.2f} x", measured, way.reason]
