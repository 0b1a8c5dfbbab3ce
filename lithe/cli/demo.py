"""See a real model decode in fewer passes with identical output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lithe import recipe
from lithe.cli._common import DTYPE, JSON, THREADS, emit, open_model
from lithe.cli._paint import Painter, Tally
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan
from lithe.errors import UsageError
from lithe.model.load import ZOO

GROUP = "run"
KINDS = ("story", "prose", "maths", "code")


def command(
    model: Annotated[str, typer.Option(help="the model to show: a folder or zoo:NAME")] = "zoo:tiny",
    show: Annotated[str, typer.Option(help="a recipe that lists methods")] = "demo",
    max_tokens: Annotated[int | None, typer.Option(help="tokens for each prompt", min=1)] = None,
    as_json: JSON = False,
    dtype: DTYPE = "auto",
    threads: THREADS = None,
) -> int:
    """Plain decoding against three methods on real prompts: live, coloured by source, passes counted, output compared."""
    totals, same = perform(Console(highlight=False, quiet=as_json), model, show, max_tokens, dtype=dtype, threads=threads)
    if as_json:
        rows = [{"method": name, "tokens": tally.tokens, "passes": tally.passes,
                 "tokens_per_pass": round(tally.tokens_per_pass, 3), "tokens_per_s": round(tally.tokens_per_s, 1),
                 "identical": same[name]} for name, tally in totals.items()]
        emit({"model": model, "identical": all(same.values()), "methods": rows})
    return 0 if all(same.values()) else 1


def perform(console: Console, model: str, show: str, max_tokens: int | None = None, kinds: Sequence[str] = KINDS,
            **how: Any) -> tuple[dict[str, Tally], dict[str, bool]]:
    """Show a recipe's methods on the first shipped prompt of each kind; what each did, and whether it said plain decoding's."""
    wanted = recipe.read(show, "methods", "max_tokens")
    if not wanted.get("methods"):
        raise UsageError(f"recipe {show!r} lists no methods to show")
    limit = max_tokens or wanted.get("max_tokens", 96)
    target = open_model(model, **how)
    console.print(f"\n[bold]lithe[/] decodes with [bold]{escape(model)}[/] ({target.size / 1e6:.0f} M parameters), "
                  "greedily, on real prompts. Uncoloured text is the model's own; coloured text was drafted and verified.\n")
    plans = [plan(target), *(plan(target, draft=spec) for spec in wanted["methods"])]
    totals = {made.name: Tally() for made in plans}
    same = dict.fromkeys(totals, True)
    painter = Painter(console)
    for kind, prompt in _prompts(kinds):
        console.rule(f"[bold]{kind}", align="left")
        console.print(prompt.strip(), style="dim", markup=False)
        expected: list[int] = []
        for made in plans:
            tally = _show(made, prompt, limit, painter, totals[made.name])
            expected = expected or tally.ids
            same[made.name] &= tally.ids == expected
    _summary(console, totals, same)
    return totals, same


def _prompts(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """The first shipped prompt of each kind."""
    rows = [json.loads(line) for line in (ZOO / "prompts" / "mixed.jsonl").read_text(encoding="utf-8").splitlines()]
    return [next((row["kind"], row["prompt"]) for row in rows if row["kind"] == kind) for kind in kinds]


def _show(made: DecodePlan, prompt: str, limit: int, painter: Painter, total: Tally) -> Tally:
    """Decode one prompt with one plan, live."""
    tally = Tally()
    painter.console.print(f"\n[reverse] {escape(made.name)} [/] ", end="\n" if painter.console.record else "")
    for step in run(made, [request(made.model, prompt, max_tokens=limit)]):
        painter.write(step)
        tally.add(step)
        total.add(step)
    painter.end()
    painter.console.print(f"\n[dim]{tally}[/]")
    return tally


def _summary(console: Console, totals: dict[str, Tally], same: dict[str, bool]) -> None:
    plain = next(iter(totals.values()))
    table = Table(title="\nall prompts", title_justify="left", title_style="bold")
    for head in ("method", "passes", "tokens/pass", "speed", "identical"):
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for name, tally in totals.items():
        bar = "█" * round(8 * tally.passes / plain.passes)
        table.add_row(name, f"{bar} {tally.passes}", f"{tally.tokens_per_pass:.2f}",
                      f"{tally.tokens_per_s / plain.tokens_per_s:.2f} x", "yes" if same[name] else "[red]NO")
    console.print(table)
    saved = max(1 - t.passes / plain.passes for t in totals.values())
    console.print(f"identical output: {'yes' if all(same.values()) else 'no'}; up to {saved:.0%} of the passes saved. "
                  "Next: lithe methods, lithe show NAME, lithe bench zoo:tiny --method NAME\n", soft_wrap=True)
