"""Tune a model on your data: all of its weights, or an adapter beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lithe.cli._common import DEVICE, JSON, OFFLINE, SEED, THREADS, emit

GROUP = "change"
HOW_LONG = "one of --epochs, --steps and --tokens says how long; one epoch where none does"


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    data: Annotated[str, typer.Option("--data", help=".jsonl or .jsonl.gz: rows of messages, prompt and completion, text, or "
                                                     "instruction and output")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the folder to write")],
    method: Annotated[str | None, typer.Option("--method", help="what to tune, as name:knob=value,...; all weights where not "
                                                                "given")] = None,
    valid: Annotated[str | None, typer.Option("--valid", help="held-out data, whose loss is told too")] = None,
    epochs: Annotated[int | None, typer.Option(help=HOW_LONG)] = None,
    steps: Annotated[int | None, typer.Option(help=HOW_LONG)] = None,
    tokens: Annotated[int | None, typer.Option(help=HOW_LONG)] = None,
    lr: Annotated[float | None, typer.Option(help="peak learning rate; chosen, and the reason told, where not given")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="tokens of a step; likewise")] = None,
    micro_tokens: Annotated[int | None, typer.Option(help="tokens of a pass: smaller takes less memory, the step is the same")]
    = None,
    context: Annotated[int | None, typer.Option(help="longest row; the model's context where not given")] = None,
    cut: Annotated[bool, typer.Option("--cut", help="cut rows longer than that, which are an error otherwise")] = False,
    everything: Annotated[bool, typer.Option("--learn-prompts", help="learn prompts too, not only answers")] = False,
    packing: Annotated[bool, typer.Option(help="put several examples in a row, each seeing itself only")] = True,
    bins: Annotated[int, typer.Option(help="with --no-packing: length buckets a step is drawn from; 0 for none", min=0)] = 30,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="compute blocks twice and keep less")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw or muon")] = "adamw",
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="begin from fresh weights of the model's shape")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="of the weights: auto, float32, bfloat16, float16 or float64")] = "auto",
    autocast: Annotated[str | None, typer.Option(help="dtype of the products, such as bfloat16")] = None,
    seed: SEED = 0,
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
    valid_every: Annotated[int, typer.Option(help="steps between held-out losses; 0: before and after only", min=0)] = 0,
    log_every: Annotated[int, typer.Option(help="steps between lines", min=1)] = 10,
    save_every: Annotated[float, typer.Option(help="seconds between checkpoints", min=0)] = 180.0,
    log_to: Annotated[str | None, typer.Option("--log-to", help="a tracker too: tensorboard")] = None,
    as_json: JSON = False,
) -> None:
    """Tune a model. Interrupted, even killed, the same command goes on where the last checkpoint was.

    The result is a folder like any other. Over several devices: torchrun --nproc-per-node N -m lithe tune ...
    """
    from lithe.cli._tune import Order, tune
    from lithe.train.session import Settings

    settings = Settings(
        epochs=epochs, steps=steps, tokens=tokens, lr=lr, batch_tokens=batch_tokens, micro_tokens=micro_tokens, packing=packing,
        bins=0 if packing else bins, checkpointing=checkpointing, optimizer=optimizer, autocast=autocast, seed=seed,
        log_every=log_every, save_every=save_every, valid_every=valid_every)
    order = Order(model=model, data=data, valid=valid, out=out, method=method, context=context, cut=cut, everything=everything,
                  from_scratch=from_scratch, dtype=dtype, device=device, threads=threads, offline=offline, log_to=log_to)
    told = tune(order, settings, quiet=as_json)
    if told is None:  # another process of the team speaks
        return
    if as_json:
        emit(told)
        return
    held = told["bytes"]
    before = f"{told['valid_loss_before']:.4f} -> " if told["valid_loss_before"] is not None else ""
    print(f"{told['steps']} steps, {told['tokens']:,} tokens learned, loss {told['loss']:.4f}"
          + (f", held out {before}{told['valid_loss']:.4f}" if told["valid_loss"] is not None else ""))
    print("memory: " + ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in held.items()))
    print(f"wrote {told['out']}")
