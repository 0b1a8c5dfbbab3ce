"""Tune a model on your data: all of its weights, or an adapter beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lithe.cli._common import DEVICE, JSON, OFFLINE, SEED, THREADS, emit, open_model

GROUP = "change"
HOW_LONG = "one of --epochs, --steps and --tokens says how long; one epoch where none does"
DATA = Annotated[str, typer.Option("--data", help=".jsonl or .jsonl.gz: rows of messages, prompt and completion, text, or "
                                                  "instruction and output")]
OUT = Annotated[Path, typer.Option("-o", "--out", help="the folder to write")]
METHOD = Annotated[str | None, typer.Option("--method", help="what to tune, as name:knob=value,...; else all weights. "
                                                          "Objectives join it, or stand alone: \"NAME + NAME:knob=value\"")]
LONG = Annotated[int | None, typer.Option(help=HOW_LONG)]
MICRO = Annotated[int | None, typer.Option(help="tokens of a pass: smaller takes less memory, the step is the same")]
PACKING = Annotated[bool | None, typer.Option("--packing/--no-packing", help="put several examples in a row, each seeing "
                                              "itself only; chosen, and the reason told, where not given")]
BINS = Annotated[int, typer.Option(help="with --no-packing: length buckets a step is drawn from; 0 for none", min=0)]
WEIGHTS = Annotated[str, typer.Option("--dtype", help="of the weights: auto, float32, bfloat16, float16 or float64")]
VALID_EVERY = Annotated[int, typer.Option(help="steps between held-out losses; 0: before and after only", min=0)]


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    data: DATA,
    out: OUT,
    method: METHOD = None,
    valid: Annotated[str | None, typer.Option("--valid", help="held-out data, whose loss is told too")] = None,
    epochs: LONG = None,
    steps: LONG = None,
    tokens: LONG = None,
    lr: Annotated[float | None, typer.Option(help="peak learning rate; chosen, and the reason told, where not given")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="tokens of a step; likewise")] = None,
    micro_tokens: MICRO = None,
    context: Annotated[int | None, typer.Option(help="longest row; the model's context where not given")] = None,
    cut: Annotated[bool, typer.Option("--cut", help="cut rows longer than that, which are an error otherwise")] = False,
    learn_prompts: Annotated[bool, typer.Option("--learn-prompts", help="learn prompts too, not only answers")] = False,
    packing: PACKING = None,
    bins: BINS = 30,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="compute blocks twice and keep less")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw or muon")] = "adamw",
    pull: Annotated[float, typer.Option(help="draws weights back to where they began: differences stay small", min=0)] = 0.0,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="begin from fresh weights of the model's shape")] = False,
    dtype: WEIGHTS = "auto",
    autocast: Annotated[str | None, typer.Option(help="dtype of the products, such as bfloat16")] = None,
    seed: SEED = 0,
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
    valid_every: VALID_EVERY = 0,
    log_every: Annotated[int, typer.Option(help="steps between lines", min=1)] = 10,
    save_every: Annotated[float, typer.Option(help="seconds between checkpoints", min=0)] = 180.0,
    log_to: Annotated[str | None, typer.Option("--log-to", help="a tracker too: tensorboard")] = None,
    as_json: JSON = False,
) -> None:
    """Tune a model. Interrupted, even killed, the same command goes on where the last checkpoint was.

    The result is a folder like any other. Over several devices: torchrun --nproc-per-node N -m lithe tune ...
    """
    given = locals()
    from lithe.train.session import Settings
    from lithe.tune.run import Order, named, run

    told = run(named(Order, given), named(Settings, given), quiet=as_json, open=open_model)
    if told is not None:  # in another process of a team, the first one speaks
        emit(told) if as_json else show(told)


def show(told: dict[str, Any]) -> None:
    """The result in three lines."""
    before, after = told["valid_loss_before"], told["valid_loss"]
    held_out = "" if after is None else f", held out {before:.4f} -> {after:.4f}"
    print(f"{told['steps']} steps, {told['tokens']:,} tokens learned, loss {told['loss']:.4f}{held_out}")
    print("memory: " + ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in told["bytes"].items()))
    print(f"wrote {told['out']}")
