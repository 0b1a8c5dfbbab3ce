"""Prove a method lossless on a model and prompts, or find the first differing token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lithe.cli._common import DEVICE, DTYPE, JSON, OFFLINE, THREADS, emit, open_model, runs_as
from lithe.cli._measure import LIMIT, PROMPTS, chosen_prompts, progress

if TYPE_CHECKING:
    from lithe.bench.doctor import Diagnosis, Difference

GROUP = "prove"
MOST = 5  # differences told in full


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    method: Annotated[str, typer.Option(help="the draft to examine, as name:knob=value")],
    prompts: PROMPTS = None,
    limit: LIMIT = None,
    max_tokens: Annotated[int, typer.Option(help="most tokens for each prompt", min=1)] = 128,
    as_json: JSON = False,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
) -> int:
    """Compare a method's greedy output with plain decoding's, token by token.

    The exit code is 0 where all tokens are the same, or differ only where plain decoding's two best logits are closer than
    twice the numeric noise of this machine and precision; 1 where a token differs by more; 130 after Ctrl-C.
    """
    from lithe.bench.doctor import diagnose
    from lithe.model.runtime import report

    asked = chosen_prompts(prompts, limit)
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    with progress("examining") as tell:
        found = diagnose(target, method, asked, max_tokens=max_tokens, progress=tell)
    facts = report(target)
    if as_json:
        emit(found.json() | {"runtime": facts})
    else:
        _show(found, facts)
    return 130 if found.interrupted else 0 if found.lossless else 1


def _show(found: Diagnosis, facts: dict[str, Any]) -> None:
    print(f"method     {found.method}")
    print(f"promises   {', '.join(found.promises) or 'nothing'}")
    for name, text in runs_as(facts):
        print(f"{name:<10} {text}")
    print(f"noise      logits move by up to {found.noise:.2g} between passes of one row and of up to {found.rows}")
    print(f"same       {found.same} of {found.prompts} prompts, {found.tokens} tokens of plain decoding in all")
    for difference in found.differences[:MOST]:
        print(_sentence(difference))
    if len(found.differences) > MOST:
        print(f"... and {len(found.differences) - MOST} more prompts differ")
    if found.interrupted:
        print(f"verdict    interrupted after {found.prompts} prompts")
    elif found.identical:
        print("verdict    lossless here: every token is the same")
    elif found.lossless:
        print("verdict    lossless here up to numeric noise: where tokens differ, the best two were a tie")
    else:
        print("verdict    NOT lossless: a token differs by more than numeric noise")


def _sentence(found: Difference) -> str:
    ours = "the text ends" if found.plain is None else f"{found.plain} {found.plain_text!r}"
    theirs = "the text ends" if found.method is None else f"{found.method} {found.method_text!r}"
    where = f"differs    prompt {found.prompt + 1}, token {found.position + 1}: plain decoding {ours}, the method {theirs}"
    if found.margin is None:
        return where
    side = "within" if found.is_noise else "beyond"
    return f"{where}; plain's best two logits are {found.margin:.3g} apart, {side} the noise of {found.noise:.2g} on each"
