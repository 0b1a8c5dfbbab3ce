"""Talk to a model."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import threading
from typing import Annotated

import typer
from rich.console import Console

from lithe.cli._common import DEVICE, DTYPE, OFFLINE, SEED, THREADS, open_model
from lithe.cli._paint import Painter, Tally
from lithe.cli.generate import chat_prompt, fill
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import FormatError, TooLargeError, UsageError
from lithe.sampling.law import Law

GROUP = "run"
HELP = "Ask something. /new forgets what was said, /bye or Ctrl-D ends."


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")] = "zoo:tiny",
    method: Annotated[list[str] | None, typer.Option(help="a method as name:knob=value; repeats, one for each slot")] = None,
    recipe: Annotated[str | None, typer.Option(help="a named combination of methods")] = None,
    system: Annotated[str | None, typer.Option(help="what the model is told first")] = None,
    max_tokens: Annotated[int, typer.Option(help="most tokens an answer may have", min=1)] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="sample among the likeliest that hold this mass")] = None,
    seed: SEED = 0,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
) -> None:
    """Chat in the terminal. Ctrl-C ends an answer early and keeps what was said."""
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    slots = fill(method or [], recipe)
    law = Law.wished(target.settings, *slots.pop("warps"), temperature=temperature, top_p=top_p)
    made, console = plan(target, **slots), Console(highlight=False)
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    chat_prompt(target, [*opening, {"role": "user", "content": "Hello"}])  # a model that cannot chat says so before it asks
    console.print(HELP, style="dim")
    while True:
        try:
            console.print("[bold]> [/]", end="")
            _wait()
            said = input().strip()
        except EOFError:
            console.print()
            return
        except RuntimeError as problem:  # input() where there is no standard input
            raise UsageError(f"nothing can be typed: {problem}") from None
        except UnicodeDecodeError:
            raise FormatError("what was typed is not UTF-8; set the terminal, or convert the file, to it") from None
        if said == "/bye":
            return
        if said == "/new":
            messages = list(opening)
        elif re.fullmatch("/[a-z]+", said):
            console.print(f"There is no {said}. {HELP}", style="dim", markup=False)
        elif said:
            _answer(made, messages, said, law, max_tokens, seed, console)


def _wait() -> None:
    """Until a line is typed. A Ctrl-C between the prompt and the read of it would else wait for a key as well."""
    main = threading.current_thread() is threading.main_thread()
    if os.name != "posix" or not main or sys.stdin is None or not sys.stdin.isatty():
        return
    near, far = socket.socketpair()
    far.setblocking(False)
    before = signal.set_wakeup_fd(far.fileno())
    try:
        select.select([sys.stdin, near], [], [])
    finally:
        signal.set_wakeup_fd(before)
        near.close()
        far.close()


def _answer(made, messages: list[dict], said: str, law: Law, max_tokens: int, seed: int, console: Console) -> None:
    """One turn; what was answered joins the messages even when it was cut short."""
    tally, painter, pieces = Tally(), Painter(console), []
    messages.append({"role": "user", "content": said})
    try:
        prompt = chat_prompt(made.model, messages)
        for step in run(made, [request(made.model, prompt, law=law, max_tokens=max_tokens, seed=seed)]):
            pieces.append(step.text)  # first, so that what was shown is always remembered
            tally.add(step)
            painter.write(step)
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/]", end="")
    except TooLargeError as problem:
        messages.pop()
        console.print(f"{problem}. /new starts afresh.", style="red", markup=False)
        return
    messages.append({"role": "assistant", "content": "".join(pieces)})
    console.print(f"\n[dim]{tally}[/]")
