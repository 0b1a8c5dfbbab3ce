"""lithe's server beside llama.cpp's, on the same weights and precision and under the same load, into the ledger.

    python tools/rival_server.py LLAMA_SERVER [--model zoo:tiny] [--precision int8] [--rounds 3] [--seconds 8] [--whole]

LLAMA_SERVER is llama.cpp's own `llama-server`, built for this machine. Each way of each server is a process that waits for its
turn: round after round every one gets the load of `tools/load.py`, which is a process of its own. Of each server the way with
the largest median stands for it; the ratio is the median of the rounds'. Prompts are token ids, texts are greedy and of one
length. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
import torch

import lithe
from lithe.bench import quiet
from lithe.bench.engines import _gguf
from lithe.bench.engines._target import prepare
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.model.checkpoint import load

ROOT = Path(__file__).resolve().parent.parent
LOAD, LEDGER = ROOT / "tools" / "load.py", ROOT / "docs" / "ledger-serving.jsonl"
PROMPTS = ROOT / "lithe" / "zoo" / "prompts" / "mixed.jsonl"
CLIENTS, TOKENS, ROOM, RANDOM = 16, 64, 8192, 64  # at once, of a text, of all contexts together, of a prompt without words
OURS, THEIRS = "lithe", "llama.cpp"
WAYS = {  # of running each; of llama.cpp what its documentation offers for speed on a processor
    OURS: {"2 threads": ["--threads", "2"], "1 thread": ["--threads", "1"]},
    THEIRS: {
        "2 threads": ["-t", "2", "-fa", "off"],
        "2 threads, flash": ["-t", "2", "-fa", "on"],
        "1 thread": ["-t", "1", "-fa", "off"],
        "2 threads, one cache": ["-t", "2", "-fa", "off", "--kv-unified"],
    },
}


def words(folder: Path, vocab: int) -> Path:
    """A tokenizer of made-up words for a model that has none, so that both servers write texts."""
    path = folder / "tokenizer.json"
    if not path.exists():
        names = ["<|end|>", "a", "b", "ab", *(f"w{i}" for i in range(4, vocab))]
        model = {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": [["a", "b"]]}
        added = {"id": 0, "content": names[0], "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        told = {"version": "1.0", "added_tokens": [added | {"normalized": False}], "pre_tokenizer": level, "decoder": level}
        path.write_text(json.dumps(told | {"model": model}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": names[0]}))
    return path


def asks(model, path: Path) -> None:
    """Prompts as token ids."""
    dice = torch.Generator().manual_seed(0)
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    made = not model.source.startswith("zoo")
    drawn = lambda: torch.randint(4, model.config.vocab, (RANDOM,), generator=dice).tolist()
    path.write_text("\n".join(json.dumps({"prompt": drawn() if made else model.tokenizer.encode(text)}) for text in texts))


def start(name: str, words: list[str], folder: Path, gguf: Path, server: str, precision: str) -> tuple[subprocess.Popen, str]:
    """A server on a free port, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if name == OURS:
        line = [sys.executable, "-m", "lithe", "serve", str(folder), "--dtype", precision, "--name", "m", "--log", "off"]
        line += ["--sequences", str(CLIENTS)]
    else:
        line = [server, "-m", str(gguf), "-np", str(CLIENTS), "-c", str(ROOM), "--no-mmap", "--no-webui"]
    process = subprocess.Popen([*line, "--port", port, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return process, f"http://127.0.0.1:{port}/v1"
        except httpx.HTTPError:
            pass
        if process.poll() is not None:
            raise SystemExit(f"{name} ended with {process.returncode}: {' '.join(line)} {' '.join(words)}")
        time.sleep(0.2)
    raise SystemExit(f"{name} did not start")


def under_load(url: str, prompts: Path, seconds: float, whole: bool) -> dict:
    extra = json.dumps({"ignore_eos": True})
    line = [sys.executable, str(LOAD), url, "--model", "m", "--clients", str(CLIENTS), "--tokens", str(TOKENS)]
    line += ["--seconds", str(seconds), "--prompts", str(prompts), "--extra", extra, *(["--whole"] if whole else [])]
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def race(args: argparse.Namespace, home: Path) -> dict:
    target = prepare(args.model, home, [])
    gguf, prompts = home / "model.gguf", home / "prompts.jsonl"
    tokenizer = words(target.folder, target.config.vocab)
    _gguf.write(load(target.folder, dtype=torch.float32), gguf, args.precision, tokenizer)
    model = lithe.load(str(target.folder), dtype=args.precision)
    model.source = args.model
    asks(model, prompts)
    version = subprocess.run([args.server, "--version"], capture_output=True, text=True, check=True)
    servers: dict[tuple[str, str], tuple[subprocess.Popen, str]] = {}
    found: dict[tuple[str, str], list[dict]] = {}
    heard = quiet.listen()
    try:
        for name, ways in WAYS.items():
            for way, words_ in ways.items():
                servers[name, way] = start(name, words_, target.folder, gguf, args.server, args.precision)
        for number in range(args.rounds + 1):  # the first warms up
            for key, (_, url) in servers.items():
                told = under_load(url, prompts, args.seconds if number else 1.0, args.whole)
                print(number, *key, json.dumps(told), flush=True)
                found.setdefault(key, []).extend([told] if number else [])
    finally:
        for process, _ in servers.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in servers.values():
            process.wait(60)
    speed = {key: median(told["tokens_per_s"] for told in rounds) for key, rounds in found.items()}
    best = {name: max((key for key in speed if key[0] == name), key=speed.__getitem__) for name in WAYS}
    pairs = zip(*(found[best[name]] for name in WAYS), strict=True)
    ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs]
    measured = {
        "tokens_per_s": {name: {key[1]: value for key, value in speed.items() if key[0] == name} for name in WAYS},
        "best": {name: key[1] for name, key in best.items()},
        "ratio": median(ratios),
        "ratios": ratios,
        "rounds": {name: found[key] for name, key in best.items()},
        "errors": sum(told["errors"] for rounds in found.values() for told in rounds),
        "rival": re.sub(r"\s+", " ", (version.stdout + version.stderr).strip()),
        "disturbed": heard.disturbed or quiet.listen().disturbed,
    }
    settings = {"part": "rival", "clients": CLIENTS, "tokens": TOKENS, "streamed": not args.whole, "seconds": args.seconds}
    Ledger(args.ledger).append(
        record("serving", model, measured=measured, inputs="rival", settings=settings, seed=0, method="rival")
    )
    return {key: measured[key] for key in ("tokens_per_s", "best", "ratio", "ratios", "errors", "disturbed")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="llama.cpp's llama-server")
    parser.add_argument("--model", default="zoo:tiny")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--whole", action="store_true", help="answers at once, not streamed")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(race(parser.parse_args(), Path(home)), indent=2))


if __name__ == "__main__":
    main()
