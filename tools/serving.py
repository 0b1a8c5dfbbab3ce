"""Write the parameters of docs/serving.md from the one declaration that the server checks them by, and the figures of
docs/serving-engine.md from the ledger.

python tools/serving.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lithe.bench.ledger import Ledger, Record
from lithe.serve.http import _bodies, _params, _shared

DOCS = Path(__file__).parent.parent / "docs"
PAGE, ENGINE, LEDGER = DOCS / "serving.md", DOCS / "serving-engine.md", DOCS / "ledger-serving.jsonl"
BEGIN, END = "<!-- parameters -->", "<!-- end of parameters -->"
MEASURED, DONE = "<!-- measured -->", "<!-- end of measured -->"
FACTS = _params.Facts(models=(), vocab=0, context=0)
WORDS = {"from 0 to -1": "token ids", "at most 0": "the context", "from -1 to 0": "from -1 to the vocabulary"}


def table() -> str:
    both = _params.lines(_shared.Shared, FACTS)
    names = {line[0] for line in both}
    parts = ["Both endpoints:", rows(both)]
    for path, kind in (("/v1/completions", _bodies.Completion), ("/v1/chat/completions", _bodies.Chat)):
        own = [line for line in _params.lines(kind, FACTS) if line[0] not in names or line not in both]
        parts += [f"`{path}` alone:", rows(own)]
    refused = dict(_params.unknown(_bodies.Completion) + _params.unknown(_bodies.Chat))
    parts += [
        "Refused, each with a 400 that names it, unless null or without effect:",
        "; ".join(f"`{name}` ({why})" for name, why in sorted(refused.items())) + ".",
    ]
    return "\n\n".join(parts)


def rows(lines: list[tuple[str, str, str, str]]) -> str:
    def cell(text: str) -> str:
        for old, new in WORDS.items():
            text = text.replace(old, new)
        return text.replace("|", "\\|")

    return "\n".join(
        [
            "| parameter | is | default | meaning |",
            "|---|---|---|---|",
            *(f"| `{name}` | {cell(kind)} | {default} | {cell(meaning)} |" for name, kind, default, meaning in lines),
        ]
    )


def _stalls(found: dict[str, Any]) -> str:
    ours, whole = found["chunked"], found["whole"]
    return (
        f"p99 {ours['p99_ms']:.0f} ms in chunks, {whole['p99_ms']:.0f} ms whole: **{found['p99_ratio']:.2f}**; all done in "
        f"{ours['seconds']:.1f} s and {whole['seconds']:.1f} s, first tokens after {ours['first_token_s']:.1f} s and "
        f"{whole['first_token_s']:.1f} s"
    )


def _prefix(found: dict[str, Any]) -> str:
    ours, other = found["shared"], found["unshared"]
    speeds = f"{ours['tokens_per_s']:.1f} and {other['tokens_per_s']:.1f} tokens/s: **{found['ratio']:.1f} x**"
    return f"{speeds}; {ours['rows']:,} and {other['rows']:,} rows; {'the same texts' if found['same'] else 'OTHER TEXTS'}"


def _overhead(found: dict[str, Any]) -> str:
    low, high = min(found["ratios"]), max(found["ratios"])
    return (
        f"{found['engine_ms']:.3f} ms a token, bare {found['bare_ms']:.3f}: **{found['ratio']:.3f}** "
        f"({low:.2f} to {high:.2f} over {len(found['ratios'])} turns)"
    )


def _together(found: dict[str, Any]) -> str:
    ms = found["ms"]
    return (
        f"{ms['together']:.1f} ms a pass, {ms['each']:.1f} each by itself: **{found['ratio']:.2f} x**, "
        f"{'the same bits' if found['same'] else 'OTHER BITS'}; {found['pages']} pages"
    )


def _through(found: dict[str, Any]) -> str:
    many, one = (found[name]["tokens_per_s"] for name in ("many", "one"))
    return f"{many:.0f} tokens/s, {one:.0f} one after another: **{found['ratio']:.1f} x**"


def _rival(found: dict[str, Any]) -> str:
    speed, best = found["tokens_per_s"], found["best"]
    told = ", ".join(f"{name} {speed[name][way]:.0f} ({way})" for name, way in best.items())
    return f"tokens/s: {told}: **{found['ratio']:.2f} x** ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})"


PARTS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "rival": ("tokens/s at 16 clients against llama.cpp's server", _rival),
    "bound": ("tokens/s at 16 clients through HTTP, against llama.cpp's batched decoding without a server", _rival),
    "stalls": ("between tokens while prompts of 1,500 tokens arrive", _stalls),
    "prefix": ("16 requests behind 1,500 common tokens, shared and not", _prefix),
    "overhead": ("the engine over the bare loop, one request", _overhead),
    "through": ("16 requests at once", _through),
    "together": ("a pass of 16 behind 4,096 common tokens, keys read together", _together),
}


def measured() -> str:
    """The newest record of each part, model, precision and way of answering."""
    newest: dict[tuple, Record] = {}
    for one in Ledger(LEDGER).read():
        newest[one.method, one.model, one.precision, one.settings.get("streamed")] = one
    lines = ["| what | model | measured | when |", "|---|---|---|---|"]
    for part, (what, tell) in PARTS.items():
        for (method, model, precision, streamed), one in sorted(newest.items(), key=lambda pair: str(pair[0])):
            if method == part:
                how = {True: ", streamed", False: ", answers whole", None: ""}[streamed]
                late = "; something else ran as well" if one.measured.get("disturbed") else ""
                lines.append(f"| {what}{how} | {model}, {precision} | {tell(one.measured)} | {one.time[:10]}{late} |")
    return "\n".join(lines)


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with that text between two marks."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def written(page: str) -> str:
    """The page with the table as it is now."""
    return between(page, BEGIN, END, table())


def figures(page: str) -> str:
    """The engine's page with what the ledger says now."""
    return between(page, MEASURED, DONE, measured())


if __name__ == "__main__":
    pages = {PAGE: written, ENGINE: figures}
    now = {path: path.read_text(encoding="utf-8") for path in pages}
    if "--check" in sys.argv:
        sys.exit(any(make(now[path]) != now[path] for path, make in pages.items()))
    for path, make in pages.items():
        path.write_text(make(now[path]), encoding="utf-8")
