"""Mixed traffic against a server of this very code for hours: what went wrong, and whether memory grows.

    python tools/soak.py --seconds 7200 --clients 8 [--adapters 2] [--formats] [--pause 4] [--out soak.json]

Starts `lithe serve zoo:tiny` with fresh adapters, and sends what users send: whole and streamed texts of many lengths, chats,
several texts at once, other methods, log probabilities, formats, other adapters, requests that are wrong, clients that leave.
Every answer must be the one that its kind of request deserves. The server's resident memory is read every few seconds, and
told by the minute. With a pause it is a patient soak that leaves the machine to others; what it costs is told, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

PROMPTS = Path(__file__).parent.parent / "lithe" / "zoo" / "prompts" / "mixed.jsonl"
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "on": {"type": "boolean"}},
    "required": ["age", "on"],
    "additionalProperties": False,
}
WRONG = [
    {"temperature": 9},
    {"temprature": 1},
    {"max_tokens": 10**6},
    {"model": "none"},
    {"lithe": {"method": "nothing"}},
    {"stop": 5},
    {"logit_bias": {"x": 1}},
    {"suffix": "x"},
    {"prompt": []},
    {"n": 0},
]
WARM = 0.2  # share of the run before memory is compared


def kinds(models: list[str], formats: bool) -> list[tuple[str, int]]:
    """What is sent, and how often."""
    return [
        ("whole", 8),
        ("stream", 8),
        ("chat", 6),
        ("leave", 6),
        ("wrong", 6),
        ("several", 3),
        ("logprobs", 3),
        ("method", 4),
        ("long", 2),
        ("broken", 2),
        ("prediction", 2),
        ("adapter", 6 if len(models) > 1 else 0),
        ("format", 3 if formats else 0),
    ]


def request(kind: str, dice: random.Random, prompts: list[str], models: list[str]) -> tuple[str, dict]:
    body: dict = {
        "model": models[0],
        "prompt": dice.choice(prompts),
        "max_tokens": dice.choice((1, 4, 16, 48)),
        "temperature": dice.choice((0, 0.8)),
        "stream": dice.random() < 0.5,
    }
    more: dict = {
        "whole": {"stream": False},
        "stream": {"stream": True},
        "leave": {"stream": True, "max_tokens": 200, "ignore_eos": True},
        "wrong": dice.choice(WRONG),
        "several": {"n": dice.randint(2, 4)},
        "logprobs": {"logprobs": dice.randint(0, 5)},
        "method": {
            "lithe": {"method": dice.choice(("prompt_lookup", "token_recycling", "prompt_lookup:tokens=4")), "report": True}
        },
        "long": {"prompt": " ".join(dice.choices(prompts, k=6))[:2000]},
        "prediction": {"prediction": {"type": "content", "content": dice.choice(prompts)}},
        "adapter": {"model": dice.choice(models)},
        "format": {"structured_outputs": {"json": SCHEMA}, "max_tokens": 48},
    }.get(kind, {})
    if kind == "chat":
        messages = [{"role": "user", "content": body.pop("prompt")}]
        return "chat/completions", body | {"messages": messages, "top_p": 0.9}
    return "completions", body | more


async def one(http: httpx.AsyncClient, url: str, kind: str, path: str, body: dict, dice: random.Random) -> str:
    """What came of a request; "ok" where it is what its kind deserves."""
    if kind == "broken":
        answer = await http.post(
            f"{url}/v1/{path}", content=json.dumps(body)[:-3], headers={"Content-Type": "application/json"}
        )
        return "ok" if answer.status_code == 400 else f"{answer.status_code} to broken JSON"
    if not body["stream"]:
        answer = await http.post(f"{url}/v1/{path}", json=body)
        return judge(kind, answer.status_code, answer.text)
    async with http.stream("POST", f"{url}/v1/{path}", json=body) as answer:
        if answer.status_code != 200 or kind == "wrong":
            return judge(kind, answer.status_code, (await answer.aread()).decode())
        left, last = dice.randint(1, 20), ""
        async for line in answer.aiter_lines():
            last, left = line or last, left - 1
            if kind == "leave" and left < 0:
                return "ok"
        return "ok" if last == "data: [DONE]" else f"a stream ended with {last[:80]!r}"


def judge(kind: str, status: int, text: str) -> str:
    if kind == "wrong":
        return "ok" if status in (400, 404) and "error" in json.loads(text) else f"{status} to a wrong request"
    if status in (200, 429):
        return "ok" if status == 200 else "429"
    return f"{status} to {kind}: {text[:160]}"


async def client(
    url: str, models: list[str], seed: int, end: float, args: argparse.Namespace, seen: Counter, sent: Counter
) -> None:
    dice = random.Random(seed)
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    names, weights = zip(*kinds(models, args.formats), strict=True)
    limits = httpx.Limits(keepalive_expiry=5)  # sooner than the server's
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        while time.monotonic() < end:
            kind = dice.choices(names, weights)[0]
            path, body = request(kind, dice, prompts, models)
            sent[kind] += 1
            try:
                seen[await one(http, url, kind, path, body, dice)] += 1
            except Exception as problem:
                seen[f"{type(problem).__name__} at {kind}"] += 1
            await asyncio.sleep(min(dice.expovariate(1 / args.pause), max(0.0, end - time.monotonic())))


def resident(process: int) -> float:
    """MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def processor(process: int) -> float:
    """Seconds that a process has had, its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_minute(points: list[tuple[float, float]]) -> list[float]:
    """The last reading of each minute that has one."""
    return [round(value, 1) for value in {int(t // 60): m for t, m in points}.values()]


def slope(points: list[tuple[float, float]]) -> float:
    """MiB an hour, by least squares."""
    mean_t, mean_m = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    return 3600 * sum((t - mean_t) * (m - mean_m) for t, m in points) / spread if spread else 0.0


def start(folder: str, adapters: int) -> tuple[subprocess.Popen, str]:
    words = [
        sys.executable,
        "-m",
        "lithe",
        "serve",
        "zoo:tiny",
        "--port",
        "0",
        "--queue",
        "64",
        "--sequences",
        "16",
        "--cache",
        "64",
    ]
    if adapters:
        import lithe
        from lithe.tune.rack import Rack

        model = lithe.load("zoo:tiny", fast=False)
        for number in range(adapters):
            Rack.of(model).make("lora:rank=4", name=f"a{number}", seed=number)
            where = Rack.of(model).save(f"a{number}", Path(folder, f"a{number}"))
            words += ["--adapter", f"a{number}={where}"]
    log = Path(folder, "log")
    process = subprocess.Popen(words, stderr=log.open("w"))
    for _ in range(600):
        if found := re.search(r"serving +(http://[^ /]+)/v1", log.read_text()):
            return process, found[1]
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.2)
    raise SystemExit("the server did not start")


async def watch(process: int, begun: float, end: float, points: list[tuple[float, float]]) -> None:
    while time.monotonic() < end:
        points.append((time.monotonic() - begun, resident(process)))
        await asyncio.sleep(5)


async def soak(process: int, url: str, args: argparse.Namespace) -> dict:
    models = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
    seen, sent, points = Counter[str](), Counter[str](), list[tuple[float, float]]()
    begun = time.monotonic()
    end = begun + args.seconds
    await asyncio.gather(
        watch(process, begun, end, points),
        *[client(url, models, seed, end, args, seen, sent) for seed in range(args.clients)],
    )
    late = [point for point in points if point[0] > WARM * args.seconds] or points
    figures = httpx.get(f"{url}/metrics").text
    tokens = re.search(r"lithe:generation_tokens_total\{[^}]*\} (\d+)", figures)
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "clients": args.clients,
        "pause": args.pause,
        "requests": sum(sent.values()),
        "by_kind": dict(sent),
        "outcomes": dict(seen),
        "tokens": int(tokens[1]) if tokens else None,
        "MiB_start": round(points[0][1], 1),
        "MiB_warm": round(late[0][1], 1),
        "MiB_end": round(points[-1][1], 1),
        "MiB_most": round(max(m for _, m in points), 1),
        "MiB_an_hour": round(slope(late), 1),
        "MiB_by_minute": by_minute(points),
        "processor_seconds": processor(process),
        "waiting_at_the_end": re.findall(r"lithe:num_requests_(?:running|waiting)\{[^}]*\} (\d+)", figures),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.025, help="mean seconds between a client's requests")
    parser.add_argument("--formats", action="store_true", help="constrained texts as well; needs the extra `json`")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(folder, args.adapters)
        try:
            told = asyncio.run(soak(process.pid, url, args))
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        lines = [json.loads(line) for line in Path(folder, "log").read_text().splitlines() if line.startswith("{")]
        told["exit_code"] = code
        told["log"] = dict(Counter(line["event"] if line["event"] != "request" else str(line["status"]) for line in lines))
    text = json.dumps(told, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + os.linesep)


if __name__ == "__main__":
    main()
