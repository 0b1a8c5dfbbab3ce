"""The laws of tokens a pass by tokens read and by weights, swept on a target: prints points, fits and the tree for each batch.

python tools/scaling.py --data FILE [--model zoo:tiny-draft] [--steps 40 80 160 320 640] [--layers 1 2 4] [--then FILE]
                        [--heads DIR] [--out FILE] [--ledger FILE]
python tools/scaling.py --pick DIR|SPEC [--model zoo:tiny-draft] [--ledger FILE]

Sizes are compared after the most tokens. --then: a second text for a stage after the first, beside that stage alone. --heads
keeps the draft that has read most; with --out the same command goes on from the points that are there. --pick holds what T(n)
of passes at batch 1 and tokens a pass on other prompts say of the guesses for each batch against tokens a second of a grid of
them, while all texts of a batch run; it needs a quiet machine, a minute. DIR: fitted heads; SPEC: any draft, with {n} for its
guesses, "draft_model:tokens={n}".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

from lithe import registry
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.bench.quiet import listen, worse
from lithe.bench.scaling import LogLaw, held_out, log_law, pick, tokens_a_pass
from lithe.cli._common import open_model, read_prompts
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model import corpus
from lithe.model.curve import CostCurve
from lithe.model.load import ZOO
from lithe.train import fitted
from lithe.train.learn import Lesson, learn, measure
from lithe.train.loop import Plan, fit
from lithe.train.optim import Optimizer
from lithe.train.schedule import Cosine
from lithe.train.teacher import Teacher, Windows

NODES, BATCHES, SIZES = 8, (1, 2, 4, 8), range(1, 33)
GRID, PROMPTS, TOKENS, TURNS = (0, 1, 2, 4, 8, 16), 16, 48, 3


def lesson_of(steps: int, rows: int, length: int) -> Lesson:
    return Lesson(steps=steps, rows=rows, length=length, warmup=max(1, steps // 10))


def point(model, ids, spec: str, lesson: Lesson, folder: Path | None = None) -> tuple[dict, fitted.Fitted]:
    """One draft fitted from nothing; its weights without the output matrix, which all sizes share."""
    made = registry.parse(spec)
    done = learn(made.entry, made.knobs, model, ids, lesson, folder=folder, quiet=True)
    weights = sum(w.numel() for name, w in done.module.named_parameters() if w.requires_grad and name != "output")
    one = {"spec": spec, "tokens": tokens(lesson), "weights": weights, "rates": done.rates,
           "tau": tokens_a_pass(done.rates, NODES)}
    print(f"{spec}, {one['tokens']:,} tokens, {weights:,} weights: {one['tau']:.3f} a pass", flush=True)
    return one, done


def tokens(lesson: Lesson) -> int:
    return lesson.steps * lesson.rows * lesson.length


def again(model, spec: str, folder: Path) -> fitted.Fitted:
    """A draft that --heads keeps, to be trained on."""
    made = registry.parse(f"{spec},heads={folder}")
    done = fitted.load(made.entry.name, made.knobs, model, made.entry.module.Method.build)
    for weight in done.module.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return done


def second(model, ids, module, knobs, lesson: Lesson) -> tuple[float, float]:
    """A stage on another text: tokens a pass of what of it is not learned from, before and after."""
    prefix = () if model.tokenizer is None else model.tokenizer.prefix
    teacher = Teacher(model, Windows(ids=ids, rows=lesson.rows, length=lesson.length, prefix=prefix), module.signals)
    before = tokens_a_pass(measure(module, teacher), NODES)
    stage = Plan(schedule=Cosine(steps=lesson.steps, warmup=lesson.warmup), optimizer=Optimizer(lr=knobs.rate))
    fit(module, teacher, lambda trained, batch: trained.loss(batch), stage, quiet=True)
    return before, tokens_a_pass(measure(module.eval(), teacher), NODES)


def stages(model, ids, first: fitted.Fitted, spec: str, lesson: Lesson) -> dict:
    """The second stage after the first, and alone."""
    made = registry.parse(spec)
    alone = fitted.fresh(made.entry.module.Method.build, made.knobs, model)
    found = {"steps": lesson.steps}
    for name, module in (("both", first.module), ("second alone", alone)):
        found[name] = dict(zip(("before", "after"), second(model, ids, module, made.knobs, lesson), strict=True))
    print(f"a second text: {found}", flush=True)
    return found


def told(name: str, points: list[dict], of: str) -> LogLaw:
    xs, taus = [p[of] for p in points], [p["tau"] for p in points]
    law = log_law(xs, taus)
    print(f"{name}: tau = {law.a:.3f} + {law.b:.4f} ln {of}; R2 {law.r2:.3f}; left out, missed by {law.missed:.1%} at most; "
          f"the largest, by {held_out(xs, taus, len(xs) - 1):+.1%}", flush=True)
    return law


def sweep(options: argparse.Namespace) -> None:
    """Points, laws, stages; one record."""
    model = open_model(options.model, fast=False)
    ids = corpus.load(options.data, model.tokenizer).ids
    most, first = options.steps[-1], None
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out and options.out.is_file() else []
    found: dict[tuple[int, int], dict] = {}
    for layers, steps in [*((options.layers[0], s) for s in options.steps), *((n, most) for n in options.layers[1:])]:
        best = (layers, steps) == (options.layers[0], most)
        spec, lesson = f"{options.method},layers={layers}", lesson_of(steps, options.rows, options.length)
        if one := next((one for one in known if (one["spec"], one["tokens"]) == (spec, tokens(lesson))), None):
            done = again(model, spec, options.heads) if best and options.heads else None
        else:
            one, done = point(model, ids, spec, lesson, options.heads if best else None)
        found[layers, steps], first = one, done if best else first
        if options.out:
            options.out.write_text(json.dumps(list(found.values()), indent=1) + "\n", encoding="utf-8")
    laws = {"tokens": told("by tokens read", [found[options.layers[0], s] for s in options.steps], "tokens"),
            "weights": told("by weights", [found[n, most] for n in options.layers], "weights")}
    measured = {"points": [{name: value for name, value in one.items() if name != "rates"} for one in found.values()]}
    measured |= {name: asdict(law) for name, law in laws.items()}
    if options.then and first:
        other = corpus.load(options.then, model.tokenizer).ids
        measured["stages"] = stages(model, other, first, f"{options.method},layers={options.layers[0]}",
                                    lesson_of(options.second, options.rows, options.length))
    if options.ledger:
        settings = {"rows": options.rows, "length": options.length, "nodes": NODES}
        Ledger(options.ledger).append(record("scaling", model, measured=measured, inputs=options.steps, settings=settings,
                                             seed=0, method=options.method))


def picked(options: argparse.Namespace) -> None:
    """Trees that the law picks for each batch beside tokens a second of the grid; one record."""
    model = open_model(options.model)
    method, rates = options.pick, None
    if Path(method).is_dir():
        notes = fitted.read_notes(Path(method))
        method, rates = f"{notes['method']}:heads={method},nodes={{n}}", notes["rates"]
    shipped = read_prompts(ZOO / "prompts" / "mixed.jsonl")
    texts, others, before = shipped[:PROMPTS], shipped[PROMPTS : 2 * PROMPTS], listen()
    spec = {n: method.format(n=n) if n else None for n in GRID}
    tau = dict.fromkeys(GRID, 1.0) | {n: counted(model, spec[n], others) for n in GRID[1:]}
    cells = {(batch, n): [] for batch in BATCHES for n in GRID}
    for turn in range(TURNS):
        for batch, n in list(cells)[:: -1 if turn % 2 else 1]:
            cells[batch, n].append(timed(model, spec[n], texts, batch))
    found = {key: {name: median(cell[name] for cell in turns) for name in turns[0]} for key, turns in cells.items()}
    rows = tuple(n + 1 for n in GRID)
    curve = CostCurve(rows=rows, medians=tuple(found[BATCHES[0], n]["pass"] for n in GRID), spreads=(0.0,) * len(rows),
                      context=0, threads=model.threads)
    told = {}
    for batch in BATCHES:
        best = pick(batch, tau.__getitem__, curve.seconds, between({key: one["rest"] for key, one in found.items()}),
                    sizes=GRID[1:])
        speeds = {n: found[batch, n]["speed"] for n in GRID}
        told[batch] = {"picked": best.nodes, "promised": best.speed, "speeds": speeds,
                       "of_the_best": speeds[best.nodes] / max(speeds.values())}
        print(f"batch {batch}: {told[batch]}", flush=True)
    if options.ledger:
        measured = {"batches": told, "tau": tau, "curve": dict(zip(rows, curve.medians, strict=True)),
                    "disturbed": worse(before, listen()).disturbed} | ({"rates": rates} if rates else {})
        Ledger(options.ledger).append(record("scaling", model, measured=measured, inputs=texts, seed=0, method=method,
                                             settings={"max_tokens": TOKENS, "turns": TURNS, "grid": GRID, "full": True}))


def counted(model, spec: str, texts: list[str]) -> float:
    """Tokens a pass, on prompts whose speed is not measured."""
    made, steps = plan(model, draft=spec), []
    for text in texts:
        steps += run(made, [request(model, text, max_tokens=TOKENS, ignore_eos=True)])
    return sum(len(step.tokens) for step in steps) / len(steps)


def timed(model, spec: str | None, texts: list[str], batch: int) -> dict[str, float]:
    """Tokens a second after the prompts, and the seconds of a round's pass and of the rest of it."""
    made, tokens, clocks = plan(model, draft=spec), 0, []
    for at in range(0, len(texts), batch):
        asked = [request(model, text, max_tokens=TOKENS, ignore_eos=True) for text in texts[at : at + batch]]
        for count, step in enumerate(run(made, asked), 1):
            tokens += len(step.tokens)
            if not clocks or clocks[-1] is not step.seconds:
                clocks.append(step.seconds)
            if count % len(asked) == 0 and any(s.finished for s in asked):
                break  # the law is of a full batch
    spent = sum(sum(clock.values()) - clock["prefill"] for clock in clocks)
    passing = sum(clock["verify"] for clock in clocks)
    return {"speed": tokens / spent, "rest": (spent - passing) / len(clocks), "pass": passing / len(clocks)}


def between(rest: dict[tuple[int, int], float]) -> Callable[[int, int], float]:
    """Seconds beside the pass, from the corners of the grid alone: straight in the batch, and in the guesses from one on."""
    (few, many), (one, most) = (BATCHES[0], BATCHES[-1]), (GRID[1], GRID[-1])

    def line(x: float, x0: float, x1: float, y0: float, y1: float) -> float:
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    def seconds(batch: int, n: int) -> float:
        at = lambda B: rest[B, 0] if n == 0 else line(n, one, most, rest[B, one], rest[B, most])
        return line(batch, few, many, at(few), at(many))

    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="what drafts read")
    parser.add_argument("--model", default="zoo:tiny-draft")
    parser.add_argument("--method", default="draft/eagle3:steps=1,depth=4,rate=2e-3", help="a draft with a knob layers")
    parser.add_argument("--steps", type=int, nargs="+", default=[40, 80, 160, 320, 640])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--then", help="a second text")
    parser.add_argument("--second", type=int, default=80, help="steps on it")
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--pick", metavar="DIR|SPEC")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ledger", type=Path)
    options = parser.parse_args()
    if options.pick:
        picked(options)
    elif options.data:
        sweep(options)
    else:
        parser.error("give --data FILE for a sweep, or --pick DIR")


if __name__ == "__main__":
    main()
