"""Continue a prompt, with any method."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from lithe import recipe as recipes
from lithe.cli._common import DEVICE, DTYPE, OFFLINE, SEED, THREADS, open_model
from lithe.cli._paint import Painter, Tally
from lithe.errors import FormatError, UsageError
from lithe.loops import prepare, run
from lithe.model.decoder import Decoder
from lithe.sampling.constraint import compiled, read
from lithe.sampling.request import request
from lithe.tune.rack import attach

GROUP = "run"


def command(
    model: Annotated[str, typer.Argument(help="a model folder, zoo:NAME or a hub id")],
    prompt: Annotated[str, typer.Argument(help="the text to continue; - reads standard input")],
    method: Annotated[list[str] | None, typer.Option(help="a method as name:knob=value; repeats, one for each slot")] = None,
    recipe: Annotated[str | None, typer.Option(help="a named combination of methods")] = None,
    max_tokens: Annotated[int, typer.Option(help="most tokens to generate", min=1)] = 128,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy", min=0)] = None,
    top_k: Annotated[int | None, typer.Option(help="sample among the k likeliest")] = None,
    top_p: Annotated[float | None, typer.Option(help="sample among the likeliest that hold this mass")] = None,
    min_p: Annotated[float | None, typer.Option(help="leave out what is below this share of the likeliest")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="end the text here; repeats")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="an adapter's folder; repeats, stacked in this order")] = None,
    constrain: Annotated[str | None, typer.Option(help="what the text must be, as 'SPEC TEXT' or 'SPEC @FILE'")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt into the model's chat template")] = False,
    sources: Annotated[bool, typer.Option(help="colour tokens by where they came from")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object at the end, nothing else")] = False,
    seed: SEED = 0,
    dtype: DTYPE = "auto",
    device: DEVICE = "cpu",
    threads: THREADS = None,
    offline: OFFLINE = False,
) -> None:
    """Generate text, streaming it with the tokens coloured by where they came from."""
    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    if adapter:
        attach(target, *adapter)
    fills, others = split(method or [])
    made, law = prepare(target, fills, fill(others, recipe), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    said = _standard_input() if prompt == "-" else prompt
    text = chat_prompt(target, [{"role": "user", "content": said}]) if chat else said
    tally, pieces, painter = Tally(), [], Painter(show_sources=sources)
    sequence = request(target, text, law=law, max_tokens=max_tokens, seed=seed, stop=stop or (),
                       constraint=None if constrain is None else compiled(target.tokenizer, *read(constrain)))
    for step in run(made, [sequence]):
        tally.add(step)
        pieces.append(step.text)
        if not as_json:
            painter.write(step)
    if as_json:
        print(json.dumps({
            "text": "".join(pieces), "tokens": tally.ids, "sources": sequence.sources, "finished": sequence.finished,
            "passes": tally.passes, "tokens_per_pass": round(tally.tokens_per_pass, 3),
            "tokens_per_s": round(tally.tokens_per_s, 1), "method": made.name, "promises": list(made.promises),
        }))
    else:
        print()
        lossy = "" if ("same_tokens" if law.greedy else "same_law") in made.promises else " (this method may change the output)"
        Console(stderr=True, highlight=False).print(f"{tally}{lossy}", style="dim", markup=False, soft_wrap=True)


def split(methods: list[str]) -> tuple[list[str], list[str]]:
    """Specs that fill a diffusion model's canvas, and all others."""
    from lithe import registry

    parts = [part for joined in methods for part in joined.split(" + ")]
    fills = [part for part in parts if registry.parse(part).entry.room == "diffuse"]
    return fills, [part for part in parts if part not in fills]


def fill(methods: list[str], recipe: str | None) -> dict:
    """Sort method specs and a recipe into the slots of a plan; a method given displaces the recipe's.

    Raises UsageError for a slot filled twice.
    """
    from lithe import registry

    slots: dict = {"draft": None, "tree": None, "accept": None, "warps": []}
    if recipe is not None:
        slots |= {key: value for key, value in recipes.read(recipe, *slots).items() if key in slots}
    given: set[str] = set()
    for text in (part for joined in methods for part in joined.split(" + ")):
        spec = registry.parse(text)
        shelf, said = {"search": "draft"}.get(spec.entry.shelf, spec.entry.shelf), spec.exact
        if shelf == "warp":
            slots["warps"].append(said)
        elif shelf not in slots:
            raise UsageError(f"{spec.entry.address} does not take part in generating")
        elif shelf in given:
            raise UsageError(f"slot {shelf} is filled twice, by {slots[shelf]} and {text}")
        else:
            slots[shelf] = said
            given.add(shelf)
    return slots


def _standard_input() -> str:
    if sys.stdin is None:
        raise UsageError("the prompt is to be read from standard input, which is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as problem:
        byte = f"byte {problem.start + 1} is {problem.object[problem.start]:#04x}"
        raise FormatError(f"the prompt on standard input is not UTF-8: {byte}") from None


def chat_prompt(model: Decoder, messages: list[dict]) -> list[int]:
    """Token ids of the messages in the model's own chat template."""
    if model.tokenizer is None:
        raise UsageError("this model has no tokenizer, so it has no chat template")
    return model.tokenizer.encode(model.tokenizer.chat(messages), bos=False)  # the template writes its own beginning
