"""lithe's best plan beside llama.cpp's best own configuration, on the same weights and precision, into the ledger.

    tools/decoding/rivals.py [--ledger FILE] [--precision NAME ...] [--repeats N] [--prepare]

llama.cpp runs plain, with the prompt lookup of its bindings and with the zoo's small model as its draft, several settings of
each; lithe its plans without training and the same small model, which both have in int8. Each engine has a process, they take
turns way by way on every prompt, and of each the way that took least time in all stands for it. Prompts are those of the
decoding table on which plain decoding does not loop, and editing. --prepare only finds these. A precision that is in the ledger
for these sources is not run again. Needs a quiet machine.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import prompts as tasks
import torch

import lithe
from lithe.bench import quiet, stats
from lithe.bench.engines import LITHE, LLAMA, PRECISIONS, _gguf
from lithe.bench.engines._lithe import open_model
from lithe.bench.engines._turns import Worker
from lithe.bench.ledger import Ledger
from lithe.bench.measure import measure
from lithe.bench.provenance import record
from lithe.cli._common import read_kinds
from lithe.decode.generate import request
from lithe.decode.plan import plan
from lithe.model.checkpoint import load, save
from lithe.model.load import resolve
from lithe.tune.rack import Rack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LEDGER, WORK = ROOT / "docs" / "ledger-decoding.jsonl", ROOT / ".lithe" / "rivals"
MODEL, DRAFT, EDITOR = "zoo:tiny", "zoo:tiny-aligned", ROOT / "lithe" / "zoo" / "tiny-editor"
EACH, TOKENS = 12, {"tasks": 64, "editing": 128}
WAYS: dict[str, dict] = {
    LITHE: {"plain": "", "prompt_lookup": "prompt_lookup", "suffix": "suffix:nodes=0",
            "token_recycling": "token_recycling:nodes=0", "blend": "blend", "aggressive": "draft=aggressive",
            "draft 5": f"draft_model:tokens=5,dtype=int8,model={DRAFT}",
            "guess": f"blend:drafts=suffix+draft_model(tokens=8;stop_below=0.3;dtype=int8;model={DRAFT})"},
    LLAMA: {"plain": {}, "lookup 2, 10": {"lookup": 2, "tokens": 10}, "lookup 2, 3": {"lookup": 2, "tokens": 3},
            "lookup 3, 7": {"lookup": 3, "tokens": 7},
            "draft 16 where sure": {"draft": True, "tokens": 16, "sure": 0.75},  # llama.cpp's defaults
            "draft 3": {"draft": True, "tokens": 3, "sure": 0.0}, "draft 5": {"draft": True, "tokens": 5, "sure": 0.0}},
}
# Ways that are for one part alone.
ONLY = {"aggressive": "editing", "prompt_lookup": "editing", "token_recycling": "tasks", "lookup 3, 7": "editing"}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--precision", action="append", choices=PRECISIONS)
    asked.add_argument("--repeats", type=int, default=1)
    asked.add_argument("--prepare", action="store_true")
    given = asked.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    asks = {part: chosen(part) for part in TOKENS}
    print({part: len(ids) for part, ids in asks.items()})
    if given.prepare:
        return
    ledger = Ledger(given.ledger)
    for precision in given.precision or PRECISIONS:
        for part, ids in asks.items():
            race(ledger, precision, part, ids, given.repeats)


def folder(part: str) -> Path:
    """The target of a part: tiny, or tiny with the editor merged."""
    if part == "tasks":
        return resolve(MODEL)
    made = WORK / "editor"
    if not (made / "config.json").is_file():
        model = lithe.load(MODEL, fast=False)
        lithe.attach(model, EDITOR)
        Rack.of(model).merge(EDITOR.name)
        save(model, made, tokenizer_from=resolve(MODEL))
    return made


def chosen(part: str) -> list[list[int]]:
    """Token ids of the prompts on which plain decoding does not loop, of editing all."""
    kept = WORK / f"{part}.json"
    if not kept.is_file():
        tasks.main([str(WORK), "--each", str(EACH if part == "tasks" else 4)])
        model = lithe.load(folder(part))
        found = []
        for text, _ in read_kinds(WORK / f"{part}.jsonl"):
            asked = request(model, text, max_tokens=TOKENS[part], ignore_eos=True)
            ids = list(asked.ids)
            if part == "editing" or not stats.loops(measure(plan(model), [asked]).tokens[0]):
                found.append(ids)
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def gguf(model: Path, precision: str) -> str:
    path = WORK / f"{model.name}-{precision}.gguf"
    if not path.is_file():
        _gguf.write(load(model, dtype=torch.float32), path, precision)
    return str(path)


def short(number: float) -> float:
    return float(f"{number:.5g}")


def race(ledger: Ledger, precision: str, part: str, asks: list[list[int]], repeats: int) -> None:
    """Every way on each prompt before the next prompt, in an order that turns; one record an engine."""
    where, count = folder(part), TOKENS[part]
    target = open_model(where, precision)
    target.source = MODEL if part == "tasks" else f"{MODEL} + {EDITOR.name}"
    settings = {"part": f"rivals-{part}", "asked": precision, "max_tokens": count, "repeats": repeats}
    empty = record("rivals", target, measured={}, inputs=asks, settings=settings, method=LITHE)
    if any((r.suite, r.settings, r.code_hash, r.prompts_hash) == ("rivals", settings, empty.code_hash, empty.prompts_hash)
           for r in ledger.read()):
        return
    common = {"folder": str(where), "precision": precision, "threads": torch.get_num_threads(),
              "capacity": target.config.context}
    ways = [(engine, name) for engine in WAYS for name in WAYS[engine] if ONLY.get(name, part) == part]
    seconds = {way: np.zeros((len(asks), repeats)) for way in ways}
    passes, texts, before = dict.fromkeys(ways, 0), {}, quiet.listen()
    with (Worker(LITHE, **common) as ours,
          Worker(LLAMA, **common, file=gguf(where, precision), draft=gguf(resolve(DRAFT), "int8")) as theirs):
        workers = {LITHE: ours, LLAMA: theirs}
        facts = {engine: worker.open() for engine, worker in workers.items()}
        for way in ways:
            workers[way[0]].ask("text", ids=asks[0], count=8, how=WAYS[way[0]][way[1]])
        for turn in range(repeats * len(asks)):
            repeat, i = divmod(turn, len(asks))
            shift = turn % len(ways)
            for way in ways[shift:] + ways[:shift]:
                said = workers[way[0]].turn("text", ids=asks[i], count=count, how=WAYS[way[0]][way[1]])
                seconds[way][i, repeat] = said["seconds"]
                passes[way] += said["passes"]
                texts.setdefault((way, i), said["tokens"])
    calm = quiet.worse(before, quiet.listen())
    tokens = np.full((len(asks), repeats), float(count))
    best = {engine: min((way for way in ways if way[0] == engine), key=lambda way: seconds[way].sum()) for engine in WAYS}
    for engine in WAYS:
        own = [way for way in ways if way[0] == engine]
        both = (seconds[best[engine]], tokens, seconds[best[LLAMA]], tokens)
        same = sum(texts[best[engine], i] == texts[(LITHE, "plain"), i] for i in range(len(asks)))
        measured = {
            "prompts": len(asks), "best": best[engine][1], "ratio": short(stats.ratio(*both)),
            "interval": [short(end) for end in stats.interval(stats.ratio, *both, seed=0) or ()], "same": same,
            "facts": facts[engine],
            "tokens_per_s": {way[1]: short(tokens.sum() / seconds[way].sum()) for way in own},
            "tokens_per_pass": {way[1]: short(tokens.sum() / passes[way]) for way in own},
            "disturbed": calm.disturbed, "join_mean_us": calm.mean_us}
        ledger.append(record("rivals", target, measured=measured, inputs=asks, settings=settings, method=engine))
        print(precision, part, engine, measured["best"], measured["tokens_per_s"], measured["ratio"], flush=True)


if __name__ == "__main__":
    main()
