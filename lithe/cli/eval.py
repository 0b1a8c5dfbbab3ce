"""Measure how well a model predicts a text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from lithe.cli._common import DEVICE, DTYPE, JSON, OFFLINE, THREADS, emit, open_model
from lithe.cli._measure import LEDGER, NO_LEDGER, open_ledger, progress

GROUP = "prove"


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    file: Annotated[str, typer.Argument(help="a .txt file, or .jsonl with a text in each line's field \"text\", or questions")],
    context: Annotated[int | None, typer.Option(help="tokens of a window; the model's context where not given")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="an adapter's folder; repeats, stacked in this order")] = None,
    dense: Annotated[str | None, typer.Option("--dense", help="the model it was made from: tells the KL to that")] = None,
    as_json: JSON = False,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
    ledger: LEDGER = None,
    no_ledger: NO_LEDGER = False,
) -> None:
    """Score a text: nats per token and bits per byte; or multiple choice: how often the right choice is the likeliest.

    Windows of the model's context overlap by half, and every token is scored once. A token that the tokenizer puts in front of
    a text (BOS) begins every window and is not scored; without one, a text's first token and its bytes count for nothing.
    Multiple choice: a .jsonl file of {"text": "The dog wagged its", "choices": ["moon", "tail"], "answer": 1}.
    """
    from lithe.bench import choices
    from lithe.bench.evaluate import divergence, documents, evaluate
    from lithe.bench.provenance import record
    from lithe.errors import UsageError
    from lithe.tune.rack import attach

    asked = choices.questions(file)
    if asked and (dense is not None or context is not None):
        raise UsageError(f"{file} holds questions, which are asked as they are: leave out --dense and --context")
    texts, book = [] if asked else documents(file), open_ledger(ledger, no_ledger)
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    rack = attach(target, *adapter) if adapter else None
    with progress("scoring") as tell:
        found = choices.accuracy(target, asked, tell) if asked else evaluate(target, texts, context=context, progress=tell)
    measured = found.json()
    if dense is not None:
        whole = open_model(dense, device=device, threads=threads, offline=offline)
        measured["kl"] = divergence(target, whole, texts, context=context)
    if book is not None:
        settings = {"file": Path(file).name, "context": context or target.config.context}
        settings |= {} if rack is None else {"adapters": [held.receipt for held in rack.adapters.values()]}
        book.append(record("eval", target, measured=measured, inputs=[str(one) for one in asked] if asked else texts,
                           settings=settings))
    if as_json:
        emit(measured)
        return
    _show(measured, dense)


def _show(measured: dict[str, Any], dense: str | None) -> None:
    if "accuracy" in measured:
        for name, what in (("accuracy", "likeliest"), ("accuracy_by_byte", "likeliest by byte")):
            low, high = measured[f"{name}_interval"] or (math.nan, math.nan)
            print(f"{measured[name]:.1%} ({low:.1%} to {high:.1%}) of {measured['questions']} right choices are the {what}; "
                  f"blind guesses {measured['chance']:.1%}")
        return
    print(f"{measured['nll']:.4f} nats per token over {measured['tokens']} tokens")
    if dense is not None:
        print(f"{measured['kl']:.4f} nats per token of KL from {dense}")
    print(f"{measured['bits_per_byte']:.4f} bits per byte over {measured['bytes']} bytes of {measured['documents']} "
          f"text{'s' if measured['documents'] > 1 else ''}")
