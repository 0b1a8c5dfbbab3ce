"""Is every method that promises it token for token plain decoding? On real prompts, in every precision, into the ledger.

    tools/decoding/identity.py [--ledger FILE] [--only TEXT ...] [--precision NAME ...] [--batch N ...] [--prompts N]
                               [--any-code]

64 shipped prompts of 128 tokens, greedy, alone and in ragged batches of 4, in fp32, int8, bf16 and int4: a record a cell,
with the passes each prompt took, keyed by the hashes of the weights and of the sources that such a run executes: what the
method and the loop import, and what is compiled. What is there already is not run again, so the same command goes on where it
stopped; --any-code counts cells of other sources too; --prompts takes fewer, and the record says how many. Exit code 1 where an
output differs. These are counts: the machine may be busy.
"""

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from lithe import registry
from lithe.bench import stats
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import code_hash, digest, record
from lithe.cli._common import read_kinds
from lithe.contracts.draft import modest
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import DecodePlan, plan
from lithe.errors import LitheError
from lithe.model.decoder import Decoder
from lithe.model.load import ZOO, load
from lithe.train.fitted import FRESH, NOTES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LEDGER, WORK = ROOT / "docs" / "ledger-identity.jsonl", ROOT / ".lithe" / "identity"
MODEL, PROMPTS, TOKENS = "zoo:tiny", 64, 128
PRECISIONS, BATCHES = ("fp32", "int8", "bf16", "int4"), (4, 1)
PROMISE = "same_tokens"
RUN = (load, plan, request, run)  # what a cell goes through beside its method


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--only", action="append", help="methods whose spec holds this text")
    asked.add_argument("--precision", action="append", choices=PRECISIONS)
    asked.add_argument("--batch", action="append", type=int)
    asked.add_argument("--prompts", type=int, default=PROMPTS)
    asked.add_argument("--any-code", action="store_true")
    given = asked.parse_args()
    ledger, wrong = Ledger(given.ledger), 0
    prompts = [prompt for prompt, _ in read_kinds(ZOO / "prompts" / "mixed.jsonl")][: given.prompts]
    specs = [spec for spec in methods() if not given.only or any(text in spec for text in given.only)]
    for batch in given.batch or BATCHES:
        for precision in given.precision or PRECISIONS:
            model = load(MODEL, dtype=precision)
            for spec in specs:
                wrong += cell(ledger, model, precision, spec, prompts, batch, given.any_code)
    return int(wrong > 0)


def methods() -> Iterator[str]:
    """Specs of all that promise it: as the decoding table has them, else at their defaults with a small tree."""
    listed = [each["spec"].replace("nodes=cost", "nodes=8")
              for each in tomllib.loads((HERE / "methods.toml").read_text(encoding="utf-8"))["method"]]
    named = {part.partition(":")[0].split("=")[-1].strip() for spec in listed for part in spec.split(" + ")}
    yield from (made(spec) for spec in listed if PROMISE in card(spec).promises)
    for entry in registry.entries("decode"):
        if PROMISE in entry.card.promises and entry.shelf in ("draft", "tree") and entry.name not in named:
            shipped = (ZOO / "heads" / entry.name / NOTES).is_file()
            knobs = [f"{name}={value}" for name, value in modest(entry).items()]
            knobs += [f"heads={FRESH}"] if entry.card.trains and not shipped else []
            spec = entry.name + (":" + ",".join(knobs) if knobs else "")
            yield f"{spec} + draft_model" if entry.shelf == "tree" else spec


def made(spec: str) -> str:
    """The same, with fresh weights where those it names were not made."""
    return re.sub(r"heads=(\.lithe/[^,\s]+)", lambda m: m[0] if (ROOT / m[1]).is_dir() else f"heads={FRESH}", spec)


def card(spec: str):
    first, shelf = spec.split(" + ")[0], "draft" if spec.startswith("draft=") else None
    return registry.parse(first.removeprefix("draft="), shelf).entry.card


def cell(ledger: Ledger, model: Decoder, precision: str, spec: str, prompts: list[str], batch: int, any_code: bool) -> int:
    """Run one method unless its record is there; returns whether it broke its promise."""
    try:
        made = plan(model, draft=spec)
    except LitheError as problem:
        print(f"{precision} batch {batch} {spec}: not run: {problem}", flush=True)
        return 0
    settings = {"part": "identity", "asked": precision, "batch": batch, "max_tokens": TOKENS}
    parts = (made.draft, made.search, *made.parts)
    wanted = record("identity", model, measured={}, inputs=prompts, settings=settings, method=made.name, knobs=made.knobs,
                    parts=parts, run=RUN)
    names = ["method", "settings", "model", *([] if any_code else ["model_hash", "weights", "code_hash"])]
    for old in ledger.read():
        enough = old.prompts_hash == digest(prompts) or old.measured.get("of", 0) > len(prompts)  # the first ones, always
        if enough and all(getattr(old, name) == getattr(wanted, name) for name in names):
            return int(old.measured["same"] != old.measured["of"])
    truth, _ = reference(model, precision, prompts)
    texts, passes = decode(made, prompts, batch)
    parted = [(i, where(x, y)) for i, (x, y) in enumerate(zip(texts, truth, strict=True)) if x != y]
    measured = {"same": len(texts) - len(parted), "of": len(texts), "parted": parted, "tokens": [len(text) for text in texts],
                "passes": passes, "loops": [stats.loops(text) for text in truth]}
    ledger.append(replace(wanted, measured=measured, time=datetime.now(UTC).isoformat(timespec="seconds")))
    gave = sum(measured["tokens"]) / sum(passes)
    same = f"{measured['same']} of {measured['of']}"
    print(f"{precision} batch {batch} {made.name}: {same}, {gave:.2f} tokens a pass", flush=True)
    return int(bool(parted))


def where(a: list[int], b: list[int]) -> int:
    """The first place at which two texts part."""
    return next((t for t, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def decode(made: DecodePlan, prompts: list[str], batch: int) -> tuple[list[list[int]], list[int]]:
    """Each prompt's tokens and passes; the prompts of a batch differ in length."""
    asked = [request(made.model, prompt, max_tokens=TOKENS) for prompt in prompts]
    place, passes = {s.number: i for i, s in enumerate(asked)}, [0] * len(asked)
    for start in range(0, len(asked), batch):
        for step in run(made, asked[start : start + batch]):
            passes[place[step.sequence.number]] += 1
    return [s.tokens for s in asked], passes


def reference(model: Decoder, precision: str, prompts: list[str]) -> tuple[list[list[int]], list[int]]:
    """Plain decoding, alone; kept for these sources."""
    made = plan(model)
    kept = WORK / f"{precision}-{digest(prompts)}-{code_hash(*made.parts, run=RUN)}.json"
    if not kept.is_file():
        WORK.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(decode(made, prompts, 1)))
    texts, passes = json.loads(kept.read_text())
    return texts, passes


if __name__ == "__main__":
    sys.exit(main())
