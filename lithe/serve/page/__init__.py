"""The web page at GET /: three files and one JSON route. Nothing in it comes from elsewhere, and nothing is built.

The page asks the same API as everyone else; what it shows of methods is the registry, papers.toml and the ledger of decoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lithe import __version__, papers, registry

HERE = Path(__file__).parent
FILES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript"),
         "/catalogue.js": ("catalogue.js", "text/javascript")}
LEDGER = registry.ROOT.parent / "docs" / "ledger-decoding.jsonl"  # beside a checkout; an installed copy has none
PLAIN = "Law()"  # how the ledger writes a law without warps: greedy decoding
POLICY = "; ".join(("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:",
                    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"))
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-cache"}


def page(path: str) -> tuple[bytes, str] | None:
    """What lies at a path, and its type; None where nothing does."""
    if path not in FILES:
        return None
    name, kind = FILES[path]
    return (HERE / name).read_bytes(), kind


def routes(service: Any) -> list[Route]:
    """The page's routes, for a server's `App`."""
    tokenizer = service.model.tokenizer
    server = {"model": service.settings.name, "context": service.facts.context, "lithe": __version__,
              "chat": tokenizer is not None and tokenizer.template is not None, "method": service.engine.method,
              "fills": service.bench.fills}  # a diffusion model has methods of its own

    async def answer(request: Request) -> Response:
        found = page(request.url.path)
        assert found is not None
        return Response(found[0], media_type=found[1], headers=HEADERS)

    async def catalogue(request: Request) -> Response:
        told = {"server": server, "methods": methods(), "papers": len(papers.papers())}
        return Response(json.dumps(told, ensure_ascii=False), media_type="application/json", headers=HEADERS)

    return [*(Route(path, answer, methods=["GET"]) for path in FILES), Route("/catalogue.json", catalogue, methods=["GET"])]


def methods(ledger: Path = LEDGER) -> list[dict[str, Any]]:
    """Every method's card, its paper's claim and our figure, and what the ledger holds of it."""
    rows, measured = papers.papers(), _measured(ledger)
    return [_told(entry, None if entry.card.row is None else rows.get(entry.card.row), measured.get(entry.name))
            for entry in registry.entries()]


def _told(entry: registry.Entry, paper: papers.Paper | None, measured: dict[str, Any] | None) -> dict[str, Any]:
    card = entry.card
    told = {"name": entry.name, "room": entry.room, "shelf": entry.shelf, "summary": entry.summary, "paper": card.paper,
            "row": card.row, "promises": list(card.promises), "needs": list(card.needs), "trains": card.trains,
            "lossless": card.lossless, "status": "baseline" if paper is None else paper.status, "measured": measured}
    if paper is not None:
        told |= {"claim": paper.paper_figure, "ours": paper.our_figure, "deviations": paper.deviations}
    return told


@cache
def _measured(ledger: Path) -> dict[str, dict[str, Any]]:
    """A method's fastest greedy cell of the ledger, by its name; over prompts on which plain decoding does not loop."""
    found: dict[str, dict[str, Any]] = {}
    for record in _lines(ledger):
        measured, name = record.get("measured") or {}, str(record.get("method", "")).partition(":")[0]
        speed = measured.get("speedup_nonlooping")
        if record.get("settings", {}).get("law") != PLAIN or not isinstance(speed, float) or " + " in record["method"]:
            continue
        if name not in found or speed > found[name]["speed"]:
            found[name] = {"speed": speed, "tokens_per_pass": measured.get("tokens_per_pass_nonlooping") or 0.0,
                           "tokens_per_s": measured.get("tokens_per_s") or 0.0, "prompts": measured.get("prompts"),
                           "spec": record["method"], "model": record.get("model"), "cpu": record.get("machine", {}).get("cpu")}
    return found


def _lines(ledger: Path) -> Iterable[dict[str, Any]]:
    if not ledger.is_file():
        return
    for line in ledger.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            yield json.loads(line)
