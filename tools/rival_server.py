"""lithe's server beside llama.cpp, on the same weights and precision and with as many clients, into the ledger.

    python tools/rival_server.py [--server LLAMA_SERVER] [--model zoo:tiny] [--precision int8] [--rounds 3] [--whole]

LLAMA_SERVER is llama.cpp's own `llama-server`, built for this machine. Without it llama.cpp runs as a server could at best:
its batched decoding by its C interface, sixteen sequences that are followed by the next as they end, with nothing to parse,
send or receive; so what lithe's server gives through HTTP is set against a bound. Each way of each is a process that waits for
its turn: round after round every one gets the load of `tools/load.py`, which is a process of its own. Of each the way with the
largest median stands for it; the ratio is the median of the rounds'. Prompts are token ids of which no two begin alike, as both
servers remember what they have read; texts are greedy and of one length. Needs a quiet machine.
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


def ways(server: bool, threads: int) -> dict[tuple[str, str], list[str]]:
    """How each is run; of llama.cpp what its documentation offers for speed on a processor."""
    many = f"{threads} thread{'s' * (threads > 1)}"
    made = {(OURS, f"{n} thread{'s' * (n > 1)}"): ["--threads", str(n)] for n in sorted({threads, 1}, reverse=True)}
    if server:
        return made | {
            (THEIRS, f"{many}, flash attention {flash}"): ["-t", str(threads), "-fa", flash] for flash in ("off", "on")
        }
    caches = {"": "", ", one cache": "one"}  # flash attention was faster at each try
    return made | {(THEIRS, f"no server, {many}{how}"): [str(threads), "on", one] for how, one in caches.items()}


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
        line = [server, "-m", str(gguf), "-np", str(CLIENTS), "-c", str(ROOM), "--load-mode", "none", "--no-ui"]
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


def under_load(url: str, prompts: Path, seconds: float, whole: bool, number: int) -> dict:
    extra = json.dumps({"ignore_eos": True})
    line = [sys.executable, str(LOAD), url, "--model", "m", "--clients", str(CLIENTS), "--tokens", str(TOKENS)]
    line += ["--seconds", str(seconds), "--prompts", str(prompts), "--extra", extra, "--fresh", "--seed", str(number)]
    line += ["--whole"] if whole else []
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def bound(gguf: str, prompts: str, threads: str, flash: str, unified: str, seconds: str) -> dict:
    """llama.cpp's batched decoding alone: each sequence's next token in one batch, a prompt in the place of who has ended.

    As under load no text begins after so many seconds, and all are brought to their end.
    """
    import ctypes
    import itertools

    import llama_cpp as api
    import numpy as np

    api.llama_backend_init()
    weights, options = api.llama_model_default_params(), api.llama_context_default_params()
    weights.use_mmap, weights.n_gpu_layers = False, 0
    model = api.llama_model_load_from_file(gguf.encode(), weights)
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = ROOM, 2048, 512, CLIENTS
    options.n_threads = options.n_threads_batch = int(threads)
    options.flash_attn_type, options.kv_unified = int(flash == "on"), bool(unified)
    context = api.llama_init_from_model(model, options)
    memory, vocab = api.llama_get_memory(context), api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(2048, 0, 1)
    asked = itertools.cycle([json.loads(line)["prompt"] for line in Path(prompts).read_text().splitlines()])
    wait, at, left, tokens = [next(asked) for _ in range(CLIENTS)], [0] * CLIENTS, [TOKENS] * CLIENTS, 0
    begun = time.perf_counter()
    while running := [s for s in range(CLIENTS) if left[s]]:
        rows, last = 0, list[int]()
        for s in running:
            for token in wait[s]:
                batch.token[rows], batch.pos[rows], batch.logits[rows] = token, at[s], 0
                batch.n_seq_id[rows], batch.seq_id[rows][0] = 1, s
                rows, at[s] = rows + 1, at[s] + 1
            batch.logits[rows - 1] = 1
            last.append(rows - 1)
        batch.n_tokens = rows
        if problem := api.llama_decode(context, batch):
            raise SystemExit(f"llama_decode gave {problem}")
        for s, row in zip(running, last, strict=True):
            given = ctypes.cast(api.llama_get_logits_ith(context, row), ctypes.POINTER(ctypes.c_float))
            wait[s], tokens, left[s] = [int(np.ctypeslib.as_array(given, (vocab,)).argmax())], tokens + 1, left[s] - 1
            if not left[s] and time.perf_counter() - begun < float(seconds):
                api.llama_memory_seq_rm(memory, s, -1, -1)
                wait[s], at[s], left[s] = next(asked), 0, TOKENS
    return {"tokens_per_s": round(tokens / (time.perf_counter() - begun), 1), "errors": 0}


def race(args: argparse.Namespace, home: Path) -> dict:
    target = prepare(args.model, home, ["Once upon a time"])
    gguf, prompts = home / "model.gguf", home / "prompts.jsonl"
    tokenizer = words(target.folder, target.config.vocab)
    _gguf.write(load(target.folder, dtype=torch.float32), gguf, args.precision, tokenizer)
    model = lithe.load(str(target.folder), dtype=args.precision)
    model.source = args.model
    asks(model, prompts)
    asked = ways(bool(args.server), args.threads)
    servers: dict[tuple[str, str], tuple[subprocess.Popen, str]] = {}
    found: dict[tuple[str, str], list[dict]] = {}
    heard = quiet.listen()

    def turn(key: tuple[str, str], seconds: float, number: int) -> dict:
        if key in servers:
            return under_load(servers[key][1], prompts, seconds, args.whole, number)
        line = [sys.executable, __file__, "--bound", str(gguf), str(prompts), *asked[key], str(seconds)]
        return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)

    try:
        for name, way in asked:
            if name == OURS or args.server:
                servers[name, way] = start(name, asked[name, way], target.folder, gguf, args.server, args.precision)
        for number in range(args.rounds + 1):  # the first warms up
            for key in asked if number else servers:
                told = turn(key, args.seconds if number else 1.0, number)
                print(number, *key, json.dumps(told), flush=True)
                found.setdefault(key, []).extend([told] if number else [])
    finally:
        for process, _ in servers.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in servers.values():
            process.wait(60)
    speed = {key: median(told["tokens_per_s"] for told in rounds) for key, rounds in found.items()}
    best = {name: max((key for key in speed if key[0] == name), key=speed.__getitem__) for name in (OURS, THEIRS)}
    pairs = zip(found[best[OURS]], found[best[THEIRS]], strict=True)
    ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs]
    measured = {
        "tokens_per_s": {name: {key[1]: value for key, value in speed.items() if key[0] == name} for name in best},
        "best": {name: key[1] for name, key in best.items()},
        "ratio": median(ratios),
        "ratios": ratios,
        "rounds": {name: found[key] for name, key in best.items()},
        "errors": sum(told["errors"] for rounds in found.values() for told in rounds),
        "rival": version(args.server),
        "disturbed": heard.disturbed or quiet.listen().disturbed,
    }
    part = "rival" if args.server else "bound"
    settings = {"part": part, "threads": args.threads, "clients": CLIENTS, "tokens": TOKENS, "seconds": args.seconds}
    settings["streamed"] = not args.whole
    Ledger(args.ledger).append(record("serving", model, measured=measured, inputs=part, settings=settings, seed=0, method=part))
    return {key: measured[key] for key in ("tokens_per_s", "best", "ratio", "ratios", "errors", "disturbed")}


def version(server: str | None) -> str:
    if server is None:
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__}"
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    return re.sub(r"\s+", " ", (said.stdout + said.stderr).strip())


def main() -> None:
    if sys.argv[1:2] == ["--bound"]:
        print(json.dumps(bound(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="llama.cpp's llama-server")
    parser.add_argument("--model", default="zoo:tiny")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="after which no text begins")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="answers at once, not streamed")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(race(parser.parse_args(), Path(home)), indent=2))


if __name__ == "__main__":
    main()
