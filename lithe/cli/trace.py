"""Watch a diffusion model fill its canvas: replay it in the terminal, or keep it as one page."""

from __future__ import annotations

import html
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lithe.cli._common import DEVICE, DTYPE, OFFLINE, SEED, THREADS, emit, open_model
from lithe.errors import UnsupportedError, UsageError

GROUP = "prove"
BOLD, DIM, TURNED, PLAIN = "\033[1m", "\033[2m", "\033[33m", "\033[0m"


def command(
    model: Annotated[str, typer.Argument(help="a diffusion model: a folder, zoo:NAME or a hub id")],
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    method: Annotated[list[str] | None, typer.Option(help="a method as name:knob=value; repeats, one for each slot")] = None,
    max_tokens: Annotated[int, typer.Option(help="places of the canvas", min=1)] = 32,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy", min=0)] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="write one self-contained page")] = None,
    delay: Annotated[float, typer.Option(help="seconds between passes in a terminal", min=0, max=10)] = 0.3,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, nothing else")] = False,
    seed: SEED = 0, dtype: DTYPE = "auto", device: DEVICE = "cpu", threads: THREADS = None, offline: OFFLINE = False,
) -> None:
    """Show which place was committed in which pass, how surely, and what was foretold otherwise before.

    A committed word stands bold, a foretold one dim with how sure it is in tenths, one that changed since the pass before in
    yellow.
    """
    from lithe.diffuse.trace import Trace
    from lithe.loops import prepare, run
    from lithe.sampling.request import request

    target = open_model(model, dtype=dtype, device=device, threads=threads, offline=offline)
    if target.config.attends == "causal":
        raise UnsupportedError(f"{model} reads from left to right: it has no canvas to watch")
    if target.tokenizer is None:
        raise UsageError(f"{model} has no tokenizer, which showing words needs")
    made, law = prepare(target, method or [], {}, temperature=temperature)
    seen = Trace()
    made.watch = seen.see  # type: ignore[union-attr]
    for _ in run(made, [request(target, prompt, law=law, max_tokens=max_tokens, seed=seed)]):
        pass
    tokenizer = target.tokenizer
    found = seen.end().json(lambda token: tokenizer.decode([token], special=True)) | {"model": model, "method": made.name}
    if html_file is not None:
        _write(html_file, page(found))
    if as_json:
        emit(found)
    else:
        _replay(found, delay if sys.stdout.isatty() else 0.0)


def _replay(found: dict[str, Any], delay: float) -> None:
    """A line a pass."""
    colours, held = sys.stdout.isatty(), dict[int, str]()
    paint = lambda text, code: f"{code}{text}{PLAIN}" if colours else text
    for number, each in enumerate(found["passes"], 1):
        held |= {place: found["words"][place] for place in each["committed"]}
        cells = []
        for place in range(found["prompt"], len(found["words"])):
            word, sure = each["guessed"].get(place, ("", 0.0))
            if place in each["committed"]:
                cells.append(paint(f"[{held[place]}]", BOLD))
            elif place in held:
                cells.append(held[place])
            else:
                cells.append(paint(f"{word}?{int(10 * sure)}", TURNED if place in each["revised"] else DIM))
        print(f"{number:3}  " + " ".join(cells), flush=True)
        time.sleep(delay)
    total = len(found["words"]) - found["prompt"]
    print(f"{found['method']}: {len(found['passes'])} passes for {total} places")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"cannot write {path}: {problem.strerror}") from None


def page(found: dict[str, Any]) -> str:
    """One HTML page that needs nothing else: a table of places and passes, and a slider through them."""
    data = json.dumps(found, ensure_ascii=True).replace("<", "\\u003c")  # no word may end the script
    return PAGE.replace("{title}", html.escape(f"{found['model']}: {found['method']}")).replace("{data}", data)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222; background: #fff }
.canvas { display: flex; flex-wrap: wrap; gap: .3rem; margin: 1rem 0 }
.place { border: 1px solid #ccc; border-radius: .3rem; padding: .2rem .5rem; min-width: 2.5rem; text-align: center }
.place small { display: block; color: #666; font-size: .7rem }
.prompt { background: #eee } .open { color: #888; border-style: dashed }
.turned { color: #a60; border-color: #a60 } .new { font-weight: bold; outline: 2px solid #256 }
table { border-collapse: collapse; font-size: .85rem } td, th { padding: .1rem .4rem; text-align: left }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } .prompt { background: #333 } }
</style>
<h1>{title}</h1>
<p><label>pass <input type="range" id="turn" min="1" value="1"> <output id="said"></output></label></p>
<div class="canvas" id="canvas"></div>
<p>Bold: committed by this pass. Dashed: foretold, with its chance. Orange: foretold otherwise a pass before.</p>
<table id="list"><tr><th>place</th><th>word</th><th>pass</th><th>chance</th><th>changed its mind</th></tr></table>
<script>
const data = {data}, turn = document.getElementById("turn"), when = {};
const add = (to, tag, text, kind) => { const e = document.createElement(tag); e.textContent = text; e.className = kind || "";
  to.appendChild(e); return e };
data.passes.forEach((p, i) => { for (const at in p.committed) when[at] = [i + 1, p.committed[at]] });
turn.max = data.passes.length;
function show() {
  const now = +turn.value, p = data.passes[now - 1], box = document.getElementById("canvas");
  document.getElementById("said").textContent = now + " of " + data.passes.length;
  box.replaceChildren();
  data.words.forEach((word, at) => {
    if (at < data.prompt) { add(box, "span", word, "place prompt"); return }
    const done = when[at] && when[at][0] <= now, told = p.guessed[at] || ["", 0];
    const kind = done ? (when[at][0] === now ? "new" : "") : p.revised.includes(at) ? "open turned" : "open";
    const cell = add(box, "span", done ? word : told[0], "place " + kind);
    add(cell, "small", (done ? when[at][1] : told[1]).toFixed(2));
  });
}
data.words.forEach((word, at) => {
  if (at < data.prompt) return;
  const row = add(document.getElementById("list"), "tr", "");
  const turns = data.passes.filter(p => p.revised.includes(at)).length;
  const [pass, sure] = when[at] || ["never", 0];
  [at - data.prompt + 1, word, pass, sure.toFixed(3), turns].forEach(value => add(row, "td", value));
});
turn.oninput = show; show();
</script>
</html>
"""
