"""Load on an OpenAI-compatible server from a process of its own: tokens a second, and how long clients wait for them.

    python tools/load.py http://127.0.0.1:8000/v1 --model tiny --clients 16 --seconds 30 --tokens 64

Each client sends its next request when the last one is answered. Works with any server of that API.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from time import perf_counter

import httpx

PROMPTS = Path(__file__).parent.parent / "lithe" / "zoo" / "prompts" / "mixed.jsonl"


async def client(http: httpx.AsyncClient, args: argparse.Namespace, prompts: list[str], seen: dict, end: float) -> None:
    while perf_counter() < end:
        body = {
            "model": args.model,
            "prompt": random.choice(prompts),
            "max_tokens": args.tokens,
            "temperature": args.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | json.loads(args.extra)
        begun = last = perf_counter()
        first = True
        async with http.stream("POST", f"{args.url}/completions", json=body) as answer:
            if answer.status_code != 200:
                seen["errors"].append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
                continue
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk, now = json.loads(line[6:]), perf_counter()
                if chunk.get("usage"):
                    seen["tokens"] += chunk["usage"]["completion_tokens"]
                if chunk["choices"] and chunk["choices"][0]["text"]:
                    seen["first" if first else "between"].append(now - (begun if first else last))
                    first, last = False, now
        seen["whole"].append(perf_counter() - begun)


async def measure(args: argparse.Namespace) -> dict:
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    prompts = [" ".join([prompt] * args.repeat) for prompt in prompts]
    seen: dict = {"tokens": 0, "first": [], "between": [], "whole": [], "errors": []}
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        begun = perf_counter()
        await asyncio.gather(*[client(http, args, prompts, seen, begun + args.seconds) for _ in range(args.clients)])
        seconds = perf_counter() - begun
    told = {
        "clients": args.clients,
        "seconds": round(seconds, 2),
        "requests": len(seen["whole"]),
        "errors": len(seen["errors"]),
        "tokens_per_s": round(seen["tokens"] / seconds, 1),
    }
    for name in ("first", "between", "whole"):
        told |= {f"{name}_p{share}_ms": round(1000 * quantile(seen[name], share / 100), 2) for share in (50, 99)}
    return told | ({"first_error": seen["errors"][0]} if seen["errors"] else {})


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="up to /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30, help="after which no request begins")
    parser.add_argument("--tokens", type=int, default=64, help="of a text")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeat", type=int, default=1, help="each prompt so many times over")
    parser.add_argument("--extra", default="{}", help="more of the body, as JSON")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
