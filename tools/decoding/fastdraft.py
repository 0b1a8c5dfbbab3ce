"""FastDraft's recipe stage by stage, for zoo:tiny: what each stage is worth as a draft, on prose and on code.

    tools/decoding/fastdraft.py [--ledger FILE] [--clock]      drafts into .lithe/fastdraft; resumes

Two drafts of about as many weights read prose, one of few wide layers and one of more narrow ones. The wide one goes on with
two parts of code and one of prose, or as long with prose; the first then with what the target writes (written.py) behind pieces
of text, or with the text's own words there. Chains of three, greedy and at temperature 0.6; counts, and with --clock, on a
quiet machine, the time of a draft's pass. One record of the ledger holds it all.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

TOOLS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOOLS / "zoo"))
import corpus  # noqa: E402
import written  # noqa: E402
from tokens import encode  # noqa: E402

import lithe  # noqa: E402
from lithe.bench import stats  # noqa: E402
from lithe.bench.ledger import Ledger  # noqa: E402
from lithe.bench.provenance import record  # noqa: E402
from lithe.bench.quiet import listen, worse  # noqa: E402
from lithe.cli._common import read_kinds  # noqa: E402
from lithe.decode.drafter import Recipe, begin, make  # noqa: E402
from lithe.decode.generate import request  # noqa: E402
from lithe.decode.loop import run  # noqa: E402
from lithe.decode.plan import plan  # noqa: E402
from lithe.model import checkpoint  # noqa: E402
from lithe.model.cache import PlainCache  # noqa: E402
from lithe.model.load import ZOO  # noqa: E402
from lithe.sampling.law import Law  # noqa: E402

LEDGER = TOOLS.parent / "docs" / "ledger-decoding.jsonl"
WORK, WRITTEN = Path(".lithe") / "fastdraft", Path(".lithe") / "heads"
TARGET, CHAIN, TOKENS, SIDE, LIMIT = "zoo:tiny", 3, 48, 8, 16
WIDE, DEEP = dict(layers=1, width=192), dict(layers=4, width=128)
FIRST, MORE = 200, 50  # steps of 8 rows of 128
STEP = dict(rows=8, length=128, align=0)
ORDERS = (("wide_code", "random"), ("aligned", "wide_code"), ("aligned", "human"), ("wide_code", "wide_prose"),
          ("wide", "deep"))
SETS = {"prose": ("story", "prose"), "code": ("code",)}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    asked.add_argument("--clock", action="store_true")
    given = asked.parse_args()
    target = lithe.load(TARGET, fast=False)
    read = drafts(target)
    model, ledger = lithe.load(TARGET), Ledger(given.ledger)
    measured = {"drafts": {name: told(model, name) for name in (*read, "random", "zoo:tiny-draft")}, "tokens_read": read}
    measured["orders"] = {f"{more} > {less}": compared(measured["drafts"], more, less) for more, less in ORDERS}
    print(json.dumps(measured["orders"], indent=1), flush=True)
    if given.clock:
        before = listen()
        measured["pass_ms"] = {name: pace(name) for name in ("plain", "wide", "deep", "zoo:tiny-draft")}
        measured["disturbed"] = worse(before, listen()).disturbed
        print(measured["pass_ms"], flush=True)
    asked_for = [prompt for name in SETS for prompt in prompts(name)]
    made = plan(model, draft=spec("wide"))
    settings = {"max_tokens": TOKENS, "tokens": CHAIN}
    ledger.append(record("fastdraft", model, measured=measured, inputs=asked_for, settings=settings, seed=0,
                         method="draft_model", parts=[made.draft]))


def drafts(target) -> dict[str, list[int]]:
    """Make what is missing; of each the tokens it has read, stage by stage."""
    prose, code, said, human = texts(target)
    mixed = shuffled(code, prose[: len(code) // 2])
    wide, more = str(WORK / "wide"), dict(keep=WIDE["layers"], pretrain=MORE, rate=1e-3)
    stage(target, "wide", prose, pretrain=FIRST, **WIDE)
    stage(target, "deep", prose, pretrain=FIRST, **DEEP)
    stage(target, "wide_prose", prose, start=wide, **more)
    stage(target, "wide_code", mixed, start=wide, **more)
    stage(target, "aligned", said, start=str(WORK / "wide_code"), **more)
    stage(target, "human", human, start=str(WORK / "wide_code"), **more)
    if not (WORK / "random" / "config.json").is_file():
        checkpoint.save(begin(target, Recipe(pretrain=1, **WIDE)), WORK / "random", tokenizer_from=target.folder)
    names = ("wide", "deep", "wide_prose", "wide_code", "aligned", "human")
    receipts = {name: json.loads((WORK / name / "lithe.json").read_text())["receipts"] for name in names}
    return {name: [each["stages"][0]["tokens"] for each in told] for name, told in receipts.items()}


def stage(target, name: str, ids: np.ndarray, **recipe) -> None:
    if not (WORK / name / "config.json").is_file():
        made = make(target, ids, Recipe(**STEP, **recipe), WORK / name, quiet=True)
        print(f"{name}: {made.size:,} weights, loss {made.receipts[-1]['stages'][-1]['loss']:.3f}", flush=True)


def texts(target) -> list[np.ndarray]:
    """Prose; code; what the target writes behind pieces of text; and the words that stand there."""
    kept = WORK / "texts.npz"
    if not kept.is_file():
        split = corpus.sources()
        some = lambda name, most: encode(target.tokenizer.backend, split[name].train)[:most].astype(np.int32)
        prose, code = shuffled(some("books_children", 220_000), some("stories", 80_000)), some("python", 70_000)
        WORK.mkdir(parents=True, exist_ok=True)
        np.savez(kept, prose=prose, code=code, **answers(np.load(WRITTEN / "text.npy")))
    found = np.load(kept)
    return [found[name] for name in ("prose", "code", "said", "human")]


def answers(text: np.ndarray) -> dict[str, np.ndarray]:
    """Of the rows that tools/zoo/heads.py had the target write, those that go on from a text, and how the text itself does."""
    said, human = [], []
    for at, path in enumerate(sorted((WRITTEN / "written").glob("[0-9]*.npz"), key=lambda path: int(path.stem))):
        ids_BT, dice = np.load(path)["ids"], np.random.default_rng(at)
        for b in range(written.BATCH):
            if b % 2:
                dice.integers(len(written.OPENINGS))
                continue
            place = int(dice.integers(len(text) - written.GIVEN))
            if place + written.LENGTH <= len(text):
                assert (ids_BT[b, : written.GIVEN] == text[place : place + written.GIVEN]).all()
                said.append(ids_BT[b])
                human.append(text[place : place + written.LENGTH])
    return {"said": np.concatenate(said), "human": np.concatenate(human)}


def shuffled(*parts: np.ndarray) -> np.ndarray:
    pieces = [part[at : at + 1000] for part in parts for at in range(0, len(part), 1000)]
    return np.concatenate([pieces[i] for i in np.random.default_rng(0).permutation(len(pieces))])


def prompts(name: str) -> list[str]:
    shipped = [prompt for prompt, kind in read_kinds(ZOO / "prompts" / "mixed.jsonl") if kind in SETS[name]]
    return shipped[:: max(1, len(shipped) // LIMIT)][:LIMIT]


def spec(name: str) -> str:
    return f"draft_model:tokens={CHAIN},model={name if ':' in name else WORK / name}"


def told(model, name: str) -> dict:
    """Tokens a pass and the share of guesses accepted, of each set and temperature, and over texts that do not loop."""
    made, found = plan(model, draft=spec(name)), {}
    for kind in SETS:
        for temperature in (0.0, 0.6):
            each = counted(model, made, prompts(kind), Law.of(temperature=temperature))
            calm = [one for one in each if not one[3]]
            found[f"{kind}, {temperature:g}"] = rates(each) | {"calm": rates(calm) if len(calm) > 1 else None,
                                                               "calm_prompts": len(calm), "each": [one[:3] for one in each]}
    print(name, {key: (one["accepted"], one["tokens_per_pass"]) for key, one in found.items()}, flush=True)
    return found


def counted(model, made, asked: list[str], law) -> list[tuple[int, int, int, bool]]:
    """Of each prompt tokens, passes, guesses, and whether its text loops."""
    found = []
    for at in range(0, len(asked), SIDE):
        batch = [request(model, prompt, law=law, max_tokens=TOKENS, seed=at + i, ignore_eos=True)
                 for i, prompt in enumerate(asked[at : at + SIDE])]
        passes, guesses = {s.number: 0 for s in batch}, {s.number: 0 for s in batch}
        for step in run(made, batch):
            passes[step.sequence.number] += 1
            guesses[step.sequence.number] += step.nodes - 1
        found += [(len(s.tokens), passes[s.number], guesses[s.number], stats.loops(s.tokens)) for s in batch]
    return found


def rates(each: list) -> dict[str, float]:
    tokens, passes, guesses = (sum(column) for column in list(zip(*each, strict=True))[:3])
    return {"accepted": round((tokens - passes) / max(1, guesses), 4), "tokens_per_pass": round(tokens / passes, 4)}


def compared(drafts: dict, more: str, less: str) -> dict[str, list[float]]:
    """By how much more of the guesses is accepted, and the interval over prompts."""
    share = lambda tokens, passes, guesses: (tokens - passes).sum((-2, -1)) / guesses.sum((-2, -1))
    apart = lambda *columns: share(*columns[:3]) - share(*columns[3:])
    found = {}
    for key in drafts[more]:
        columns = [np.array(column, dtype=float)[:, None] for side in (more, less)
                   for column in zip(*drafts[side][key]["each"], strict=True)]
        ends = stats.interval(apart, *columns) or (0.0, 0.0)
        found[key] = [round(float(value), 4) for value in (apart(*columns), *ends)]
    return found


def pace(name: str) -> float:
    """Milliseconds of a pass of one row behind 128."""
    model = lithe.load(TARGET if name == "plain" else name if ":" in name else str(WORK / name))
    cache = PlainCache.like(model, batch=1, capacity=256)
    ids = np.arange(128)[None] + 100
    with torch.inference_mode():
        model(torch.from_numpy(ids), cache=cache)
        cache.commit([128])
        times = []
        for _ in range(400):
            begun = perf_counter()
            model(torch.tensor([[7]]), cache=cache)
            times.append(perf_counter() - begun)
    return round(1e3 * median(times), 4)


if __name__ == "__main__":
    main()
