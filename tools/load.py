"""Load on an OpenAI-compatible server from a process of its own: tokens a second, and how long clients wait for them.

    python tools/load.py http://127.0.0.1:8000/v1 --model tiny --clients 16 --seconds 30 --tokens 64

Each client sends its next request when the last one is answered. Works with any server of that API. It reads bytes and counts
events, and parses no more than it must: what it costs is taken from the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
from pathlib import Path
from time import perf_counter, process_time
from urllib.parse import urlsplit

PROMPTS = Path(__file__).parent.parent / "lithe" / "zoo" / "prompts" / "mixed.jsonl"
EVENT, KEPT = b"data: {", 4096  # what an event begins with; bytes of an answer's end, where its usage stands
TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


async def ask(args: argparse.Namespace, body: dict, seen: dict) -> None:
    """One request and its answer, on a connection of its own."""
    where, data = urlsplit(args.url), json.dumps(body).encode()
    begun = last = perf_counter()
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    head = f"POST {where.path}/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    first, tail, status = True, b"", b""
    while part := await reader.read(1 << 16):
        now, status = perf_counter(), status or part[:15]
        new = (tail[1 - len(EVENT) :] + part).count(EVENT)
        for _ in range(new):
            seen["first" if first else "between"].append(now - (begun if first else last))
            first, last = False, now
        tail = (tail + part)[-KEPT:]
    writer.close()
    if b" 200 " not in status or not (found := TOKENS.findall(tail)):
        seen["errors"].append((status + b" ... " + tail[-200:]).decode(errors="replace"))
        return
    seen["tokens"] += int(found[-1])
    seen["whole"].append(perf_counter() - begun)


def drawn(prompts: list, fresh: bool, dice: random.Random) -> str | list[int]:
    """A prompt. fresh: one that begins as none before, so that no server remembers what it holds of it."""
    prompt = dice.choice(prompts)
    if not fresh:
        return prompt
    if isinstance(prompt, str):
        return f"{dice.random()} {prompt}"
    return [*(dice.choice(dice.choice(prompts)) for _ in "ab"), *prompt]


async def client(args: argparse.Namespace, prompts: list, seen: dict, dice: random.Random, end: float) -> None:
    while perf_counter() < end:
        prompt = drawn(prompts, args.fresh, dice)
        body = {"model": args.model, "prompt": prompt, "max_tokens": args.tokens, "temperature": args.temperature}
        if not args.whole:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        await ask(args, body | json.loads(args.extra), seen)


async def measure(args: argparse.Namespace) -> dict:
    prompts = [json.loads(line)["prompt"] for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    seen: dict = {"tokens": 0, "first": [], "between": [], "whole": [], "errors": []}
    begun, busy = perf_counter(), process_time()
    end = begun + args.seconds
    await asyncio.gather(*[client(args, prompts, seen, random.Random(f"{args.seed} {n}"), end) for n in range(args.clients)])
    seconds = perf_counter() - begun
    told = {
        "clients": args.clients,
        "seconds": round(seconds, 2),
        "requests": len(seen["whole"]),
        "errors": len(seen["errors"]),
        "tokens_per_s": round(seen["tokens"] / seconds, 1),
        "own_processor": round((process_time() - busy) / seconds, 3),
    }
    for name in ("whole",) if args.whole else ("first", "between", "whole"):
        told |= {f"{name}_p{share}_ms": round(1000 * quantile(seen[name], share / 100), 2) for share in (50, 99)}
    return told | ({"first_error": seen["errors"][0]} if seen["errors"] else {})


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="up to /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30, help="after which no request begins")
    parser.add_argument("--tokens", type=int, default=64, help="of a text")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="lines with a prompt each, text or token ids")
    parser.add_argument("--fresh", action="store_true", help="no prompt begins as another one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="answers at once, not streamed")
    parser.add_argument("--extra", default="{}", help="more of the body, as JSON")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
