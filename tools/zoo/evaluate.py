"""Bits per byte on held-out text, of a model and of its Kneser-Ney rival, over the same tokens.

python tools/zoo/evaluate.py tiny [--zoo .lithe/zoo] [--rival]: writes <zoo>/<model>/heldout.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import history
import numpy as np
import torch
from export import newest
from kneser_ney import KneserNey
from models import MODELS, READINGS, SOURCES, fast_bf16

from lithe.model.decoder import ALL, Decoder
from lithe.train.batches import Rows

SPANS, SPAN = 8, 4096  # of each source: evenly spaced stretches, and their tokens
WINDOW, STRIDE = 1024, 512  # every token but the first ones sees at least 512 before it


def bits_of_model(decoder: Decoder, ids: np.ndarray) -> float:
    """Sum of -log2 p over every id but the first. Axes: B windows, T tokens, V vocabulary."""
    total, starts = 0.0, range(0, max(1, len(ids) - 1 - (WINDOW - STRIDE)), STRIDE)
    for start in starts:
        window = torch.from_numpy(ids[start : start + WINDOW + 1].astype(np.int64))
        scored = 0 if start == 0 else WINDOW - STRIDE  # the rest was scored in the window before
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
            logits_TV = decoder(window[None, :-1], logits=ALL).logits[0, scored:]
        total += torch.nn.functional.cross_entropy(logits_TV.float(), window[1 + scored :], reduction="sum").item()
    return total / math.log(2)


def read_once(name: str, zoo: Path, runs: list[dict]) -> list[np.ndarray]:
    """Every token that was read in any of the runs, once, as the stretches of text that it was read in."""
    model, streams, tokens = MODELS[name], [], zoo / "tokens"
    sources = {source: np.fromfile(tokens / f"{source}.train.bin", np.uint16) for source in SOURCES}
    seen = {source: np.zeros(len(ids), bool) for source, ids in sources.items()}
    for run, reading in zip(runs, READINGS, strict=False):
        batches = model.batches(tokens, reading)
        for rows, first, last in ((batches.stable, 0, run["ending"]), (batches.ending, run["ending"], run["steps"])):
            mark(rows, range(first * rows.rows, last * rows.rows), seen)
    for source, mask in seen.items():
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        streams += [sources[source][a:b] for a, b in edges.reshape(-1, 2)]
    return streams


def mark(rows: Rows, numbers: range, seen: dict[str, np.ndarray]) -> None:
    for row in numbers:
        source, start = rows.span(row)
        seen[source][start : start + rows.length + 1] = True


def heldout(zoo: Path) -> dict[str, tuple[list[np.ndarray], float]]:
    """Stretches of each source's held-out ids, all of it where it is short, and the bytes they stand for."""
    sizes, found = json.loads((zoo / "tokens" / "tokens.json").read_text()), {}
    for source in SOURCES:
        ids, size = np.fromfile(zoo / "tokens" / f"{source}.heldout.bin", np.uint16), sizes[f"{source}.heldout"]
        starts = range(0, max(len(ids) - SPAN, 1), max((len(ids) - SPAN) // SPANS + 1, SPAN))
        spans = [ids[start : start + SPAN] for start in starts]
        found[source] = spans, size["bytes"] * sum(map(len, spans)) / len(ids)
    return found


def evaluate(name: str, zoo: Path, *, rival: bool) -> dict:
    decoder, state = newest(name, zoo)
    texts, start = heldout(zoo), time.monotonic()
    runs = [*history.runs(zoo / name), history.entry(state)]
    result = {"step": state["step"], "runs": runs,
              "model": {source: sum(bits_of_model(decoder, ids) for ids in spans) / size
                        for source, (spans, size) in texts.items()}}
    print(f"{name}: {result['model']} in {time.monotonic() - start:.0f} s", flush=True)
    if rival:
        start = time.monotonic()
        streams = read_once(name, zoo, runs)
        kn = KneserNey(streams, vocab=MODELS[name].config.vocab)
        result["rival_tokens"] = sum(map(len, streams))
        result["rival"] = {source: sum(float(-np.log2(kn.stream(ids)).sum()) for ids in spans) / size
                           for source, (spans, size) in texts.items()}
        print(f"Kneser-Ney, {result['rival_tokens']:,} distinct tokens: {result['rival']} in {time.monotonic() - start:.0f} s")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"))
    parser.add_argument("--rival", action="store_true")
    options = parser.parse_args()
    found = evaluate(options.model, options.zoo, rival=options.rival)
    (options.zoo / options.model / "heldout.json").write_text(json.dumps(found, indent=2) + "\n")
