"""What rows of the tuning room claim beside gain and forgetting, each a check of minutes with a record in the ledger.

    python tools/tuning_checks.py compeft signs drops interference rank density context law buckets layers

A check that the ledger holds is not run again. Texts are those of the plan `lithe bench --suite tuning` runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lithe import registry
from lithe.bench import provenance
from lithe.bench.ledger import Ledger
from lithe.bench.matrix import data_folder
from lithe.bench.tuning import _plan, _text
from lithe.bench.tuning._run import score
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.train.feed import Feed
from lithe.train.guide import Guide
from lithe.train.loss import Chunked
from lithe.train.session import Settings, train
from lithe.train.step_law import step_law, weights_of
from lithe.train.text import of_ids
from lithe.tune import coding, difference
from lithe.tune.rack import Adapter, Rack
from lithe.tune.run import methods
from lithe.tune.trial import Trial

MODEL, LARGER, SUITE = "zoo:tiny-draft", "zoo:tiny", "tuning-checks"
PLAN = dataclasses.replace(_plan.read(), steps=40)


class Desk:
    """A model, the plan's texts, and trainings on them."""

    def __init__(self, plan: _plan.Plan = PLAN):
        self.plan, self.root = plan, data_folder()
        self.tokenizer = load(MODEL, fast=False).tokenizer
        assert self.tokenizer is not None
        self.home = _text.home(plan, self.root, self.tokenizer)
        self.shifts = {shift.name: shift for shift in plan.shifts}
        self.digests = [self.home.digest]

    def texts(self, shift: str) -> _text.Texts:
        assert self.tokenizer is not None
        found = _text.texts(self.shifts[shift], self.plan, self.root, self.tokenizer)
        self.digests.append(found.digest)
        return found

    def tuned(self, shift: str, spec: str, rate: float, *, seed: int = 0, name: str = MODEL,
              **settings: Any) -> tuple[Decoder, Adapter | None]:
        """A model after a training; without a spec all its weights moved."""
        torch.manual_seed(seed)
        model = load(name, dtype="float32", fast=False)
        wanted, beside = methods(spec.replace("{data}", str(self.root)))
        adapter, aims = None, [found.entry.module.Method(found.knobs, model) for found in beside]
        if wanted is None:
            model.requires_grad_(True)
        else:
            Rack.of(model).make(wanted.exact, name="a", seed=seed)
            adapter = Rack.of(model).train("a")
        for aim in aims:
            if hasattr(aim, "enter"):
                aim.enter(model)
        guide = Guide(adapter and adapter.method, adapter and adapter.parts, aims)
        given = Settings(**{"steps": self.plan.steps, "batch_tokens": self.plan.tokens, "lr": rate, "seed": seed,
                            "weight_decay": 0.0, "packing": True} | settings)
        train(model, self.texts(shift).train, given, context=self.plan.context, guide=guide, quiet=True,
              adapter=adapter is not None)
        guide.finish()
        for aim in aims:
            if hasattr(aim, "leave"):
                aim.leave(model)
        return model, adapter


def compeft(desk: Desk) -> dict[str, Any]:
    """Row 116: what is kept at which size on three shifts, and how little could be lost at 1/16 by any code.

    noise: the share of the gain lost where the update gets independent noise of this share of each tensor's energy, the mean of
    three draws. normal: excess kurtosis of the update's values; 0 is a normal law's.
    """
    told: dict[str, Any] = {}
    for shift in list(desk.shifts):
        model, _ = desk.tuned(shift, "lora:rank=8", 3e-3)
        test = desk.texts(shift).test
        judge = lambda tried, test=test: score(tried, test)
        with tempfile.TemporaryDirectory() as place:
            folder = Rack.of(model).save("a", Path(place) / "a")
            trial, change = Trial(MODEL), difference.between(MODEL, folder)
            base, whole = trial.judge(None, judge), trial.judge(change, judge)
            kept = lambda made, base=base, whole=whole: (base - made) / (base - whole)
            rows = {}
            for spec in ("compeft:share=0.2,alpha=-1,scope=tensor", "compeft:share=0.1,alpha=-1,scope=tensor",
                         "compeft:share=0.3,alpha=-1,scope=tensor", "compeft:share=0.2,alpha=3", "round_levels:step=1.5",
                         "round_levels:step=2"):
                made = difference.through(change, difference.parse([spec]))
                packed = difference.pack(made, Path(place) / spec.replace(":", "-"))
                size = sum(file.stat().st_size for file in packed.iterdir())
                values = sum(change.delta(name).numel() for name in change.names)
                rows[spec] = {"kept": kept(trial.judge(made, judge)), "smaller": 2 * values / size,
                              "error": _error(change, made)}
            noise = {share: statistics.mean(1 - kept(trial.judge(_noisy(change, share, seed), judge)) for seed in range(3))
                     for share in (0.1, 0.2, 0.3, 0.4)}
            every = torch.cat([d.flatten() / d.std() for name in change.names if (d := change.delta(name)).std() > 0])
            told[shift] = {"base": base, "whole": whole, "packed": rows, "noise": noise,
                           "normal": ((every - every.mean()) ** 4).mean().item() / every.var().item() ** 2 - 3}
    return told


def signs(desk: Desk) -> dict[str, Any]:
    """Row 116: every sign and a size a tensor, one bit a value, beside the paper's fifth; one of them on the larger model."""
    told = {}
    for shift, name, rank in (("dialogue", MODEL, 8), ("law", MODEL, 8), ("german", MODEL, 8), ("dialogue", LARGER, 16)):
        model, _ = desk.tuned(shift, f"lora:rank={rank}", 3e-3, name=name)
        test = desk.texts(shift).test
        with tempfile.TemporaryDirectory() as place:
            folder = Rack.of(model).save("a", Path(place) / "a")
            trial, change = Trial(name), difference.between(name, folder)
            base, whole = (trial.judge(one, lambda tried, test=test: score(tried, test)) for one in (None, change))
            for share in (0.2, 1):
                made = difference.through(change, difference.parse([f"compeft:share={share},alpha=-1,scope=tensor"]))
                packed = difference.pack(made, Path(place) / f"packed{share}")
                size = sum(file.stat().st_size for file in packed.iterdir())
                values = sum(change.delta(held).numel() for held in change.names)
                after = trial.judge(made, lambda tried, test=test: score(tried, test))
                told[f"{name}, {shift}, share {share}"] = {
                    "kept": (base - after) / (base - whole), "smaller": 2 * values / size, "error": _error(change, made),
                    "values": values}
    return told


def _error(change: difference.Change, made: difference.Change) -> float:
    """Squared error over squared size, the mean over tensors."""
    shares = [((made.delta(n) - d).square().sum() / d.square().sum()).item() for n in change.names
              if (d := change.delta(n)).any()]
    return statistics.mean(shares)


def _noisy(change: difference.Change, share: float, seed: int) -> difference.Change:
    """The update, each tensor with noise of a share of its energy."""
    def late(name: str) -> torch.Tensor:
        delta = change.delta(name)
        dice = torch.Generator().manual_seed(seed * 1000 + len(name) + delta.numel())
        draw = torch.randn(delta.shape, generator=dice, dtype=delta.dtype)
        return (change.base(name) + delta + draw * (share * delta.square().mean()) ** 0.5).to(change.dtypes[name])

    return dataclasses.replace(change, late=late)


def drops(desk: Desk) -> dict[str, Any]:
    """Row 100: dropping most of an update. AdamR's pull against plain Adam at 0.95; DAREx's factor at 0.99; and an update that
    is four times too large, thinned to 0.3 by size or by dice. One loss a mask.
    """
    test, base = desk.texts("law").test, load(MODEL, dtype="float32", fast=False)
    told: dict[str, Any] = {"before": score(base, test)}

    def left(deltas: dict[str, torch.Tensor], spec: str, masks: int) -> list[float]:
        found, losses = registry.parse(f"delta={spec}"), []
        tried = load(MODEL, dtype="float32", fast=False)
        for seed in range(masks):
            dice, method = torch.Generator().manual_seed(seed), found.entry.module.Method(found.knobs)
            for turn in range(getattr(method, "turns", 0)):
                for name, delta in deltas.items():
                    method.read(name, delta, turn)
            with torch.no_grad():
                for name, weight in tried.named_parameters():
                    made = coding.decode(method.encode(name, deltas[name], dice), torch.zeros_like(weight))
                    weight.copy_(base.get_parameter(name) + made)
            losses.append(score(tried, test))
        return losses

    for strength in (0.0, 0.02, 0.1):
        model, _ = desk.tuned("law", "", 3e-3, pull=strength)
        deltas = {n: (w - base.get_parameter(n)).detach() for n, w in model.named_parameters()}
        told[f"pull {strength:g}"] = {"after": score(model, test), "dropped": left(deltas, "dare:drop=0.95", 3),
                                      "size": math.sqrt(sum(d.square().sum().item() for d in deltas.values()))}
        if not strength:
            told |= {spec: left(deltas, spec, 3) for spec in
                     ("dare:drop=0.99", "darex:drop=0.99,over=1", "darex:drop=0.99,over=2", "darex:drop=0.99,over=4")}
            large = {name: 4 * delta for name, delta in deltas.items()}
            told |= {f"4 x, {spec}": left(large, spec, n) for spec, n in (("dare:drop=0.7", 2), ("top_magnitude:share=0.3", 1))}
    return told


def interference(desk: Desk) -> dict[str, Any]:
    """Row 42: updates tuned apart and added up. Two texts, few entries against all; and a task with a language: English
    captions and German of another kind, tried on German captions.
    """
    told: dict[str, Any] = {}
    pair = ("dialogue", "german")
    tests = {shift: desk.texts(shift).test for shift in pair}
    base = load(MODEL, dtype="float32", fast=False)
    told["base"] = {shift: score(base, test) for shift, test in tests.items()}

    def added(made: list[tuple[Decoder, Adapter | None]]) -> Decoder:
        total = load(MODEL, dtype="float32", fast=False)
        with torch.no_grad():
            for model, adapter in made:
                if adapter is not None:
                    Rack.of(model).merge("a")
                for name, weight in total.named_parameters():
                    weight.add_(model.get_parameter(name).to(weight) - base.get_parameter(name))
                Rack.of(model).unmerge() if adapter is not None else None
        return total

    for spec, rate in (("lt_sft:density=0.05", 1e-2), ("lt_sft:density=0.05", 3e-2), ("", 3e-3), ("", 1e-3)):
        made = [desk.tuned(shift, spec, rate) for shift in pair]
        alone = {shift: score(model, tests[shift]) for shift, (model, _) in zip(pair, made, strict=True)}
        total = added(made)
        told[f"{spec or 'full'} at {rate:g}"] = {"alone": alone, "added": {s: score(total, t) for s, t in tests.items()}}
    english = dataclasses.replace(desk.shifts["german"], name="english", train="multi30k/train.en.gz",
                                  test="multi30k/test_2016_flickr.en.gz")
    file = "wmt22/newstest22.en-de.jsonl.gz"
    words = _plan.Shift(name="words", train=file, test=file, text="{de}")
    desk.shifts |= {"english": english, "words": words}
    for spec, rate in (("lt_sft:density=0.05", 3e-2), ("", 1e-3)):
        task, language = (desk.tuned(shift, spec, rate) for shift in ("english", "words"))
        told[f"{spec or 'full'}: German captions"] = {
            "task": score(task[0], tests["german"]), "language": score(language[0], tests["german"]),
            "both": score(added([task, language]), tests["german"])}
    return told


def rank(desk: Desk) -> dict[str, Any]:
    """Row 47: does the nuclear norm lower the stable rank of the changes, and at what loss?"""
    told = {}
    test = desk.texts("law").test
    for weight in (0.0, 5e-4, 5e-2, 0.5):
        model, adapter = desk.tuned("law", f"sara:density=0.19,nuclear={weight}", 1e-2)
        assert adapter is not None
        found = [torch.linalg.svdvals(part.matrix().detach()) for part in adapter.parts.values()]
        told[weight] = {"stable_rank": statistics.mean((s.square().sum() / s[0] ** 2).item() for s in found),
                        "after": score(model, test)}
    return told


def density(desk: Desk) -> dict[str, Any]:
    """Row 57: channels of a gated activation beyond 1 % and 10 % of their token's rms, with the objective and without."""
    told = {}
    test = desk.texts("law").test
    for weight in (0.0, 1.0, 3.0, 10.0):
        for relative in (0.01, 0.1):
            spec = "lora:rank=8" + (f" + density:relative={relative},weight={weight}" if weight else "")
            model, _ = desk.tuned("law", spec, 1e-2)
            told[f"weight {weight:g} at {relative:g} rms"] = {"on": _on(model, test), "after": score(model, test)}
            if not weight:
                break
    return told


def _on(model: Decoder, examples: Any) -> dict[str, float]:
    """The share of channels whose activation exceeds a share of the token's rms."""
    found: dict[str, list[float]] = {"0.01": [], "0.1": []}

    def look(mlp: Any) -> Callable[..., None]:
        def seen(module: Any, args: Any, y: torch.Tensor) -> None:
            a = mlp.activation(y)
            for share, kept in found.items():
                kept.append((a.abs() > float(share) * a.square().mean(-1, keepdim=True).sqrt()).double().mean().item())
        return seen

    hooks = [block.mlp.gate_proj.register_forward_hook(look(block.mlp)) for block in model.layers]
    score(model, examples)
    for hook in hooks:
        hook.remove()
    return {share: statistics.mean(kept) for share, kept in found.items()}


def context(desk: Desk) -> dict[str, Any]:
    """Row 20: the loss after tuning on rows of 512 tokens with half the blocks, against LoRA alone, and seconds of both."""
    long = Desk(dataclasses.replace(desk.plan, context=512, tokens=1024, steps=20))
    told: dict[str, Any] = {}
    test = long.texts("law").test
    corpus = "corpus={data}/tinyshakespeare/input.txt.gz"
    for name, spec in (("lora", "lora:rank=8"),
                       ("exact", f"lora:rank=8 + lemo:keep=0.5,channels=0.6,block=16,scores=exact,{corpus}"),
                       ("predicted", f"lora:rank=8 + lemo:keep=0.5,channels=0.6,block=16,{corpus}"),
                       ("blocks alone", f"lora:rank=8 + lemo:keep=0.5,channels=1,block=16,scores=exact,{corpus}")):
        for seed in (0,):
            start = time.process_time()
            model, _ = long.tuned("law", spec, 1e-2, seed=seed)
            told[f"{name}, seed {seed}"] = {"after": score(model, test), "cpu_seconds": time.process_time() - start}
    return told


def law(desk: Desk) -> dict[str, Any]:
    """Row 94: five rates around the Step Law's, a small model from scratch; near the law's batch."""
    config = Config(vocab=4096, width=64, layers=3, heads=4, kv_heads=2, ffn=176, context=128, tied=True)
    home = desk.root / "tinystories"
    files = sorted(str(path) for path in home.glob("*.jsonl.gz"))
    assert desk.tokenizer is not None
    shift = _plan.Shift(name="stories", train=files[0], test=files[-1])
    plan = dataclasses.replace(desk.plan, steps=160, tokens=256, held_out=4000)
    found = _text.texts(shift, plan, desk.root, desk.tokenizer)
    total = plan.steps * plan.tokens
    said = step_law(weights_of(Decoder(config)), total)
    told: dict[str, Any] = {"weights": weights_of(Decoder(config)), "tokens": total, "rate": said.rate, "batch": said.tokens}
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        model = Decoder(config).init(0).requires_grad_(True)
        settings = Settings(steps=plan.steps, batch_tokens=plan.tokens, lr=factor * said.rate, packing=True, weight_decay=0.1)
        train(model, found.train, settings, context=plan.context, quiet=True, fresh=True)
        told[f"x{factor:g}"] = score(model, found.test)
    return told


def buckets(desk: Desk) -> dict[str, Any]:
    """Row 68: processor seconds of an epoch over dialogues of all lengths, by layout, and the loss that it ends at.

    naive: 16 examples at random, all padded to the longest, as most trainers do.
    """
    shift = desk.shifts["dialogue"]
    assert desk.tokenizer is not None
    rows = list(_text.rows(shift, desk.root / shift.train, (0, 120)))
    ids = [desk.tokenizer.encode(text)[:1000] for text in rows]
    examples, held = (of_ids((row, [True] * len(row)) for row in part) for part in (ids[:100], ids[100:]))
    told: dict[str, Any] = {"real_tokens": int(examples.lengths.sum())}
    for name, settings in (("naive", {"packing": False}), ("padded", {"packing": False}),
                           ("buckets", {"packing": False, "bins": 10}), ("packed", {})):
        feed = Feed(examples=examples, tokens=4096, context=1024, **settings)
        steps = [feed(i) for i in range(feed.steps(1))]
        if name == "naive":
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
            steps = [[feed._batch([[i] for i in order[at : at + 16]])] for at in range(0, len(order), 16)]
        model = load(MODEL, dtype="float32", fast=False).requires_grad_(True).train()
        optimizer, loss = torch.optim.AdamW(model.parameters(), lr=3e-4), Chunked(1024)
        start = time.process_time()
        for step in steps:
            parts = [loss(model, batch) for batch in step]
            (sum(total for total, _ in parts) / sum(int(count) for _, count in parts)).backward()
            optimizer.step()
            optimizer.zero_grad()
        told[name] = {"cpu_seconds": time.process_time() - start, "steps": len(steps), "after": score(model, held),
                      "rows_run": sum(batch["ids_BT"].numel() for step in steps for batch in step)}
    return told


def layers(desk: Desk) -> dict[str, Any]:
    """Row 48: the coarse search, as a tree: ranges of layers with all modules, then the best range's modules, then its halves.

    gain and forgets in nats a token; the best has the largest difference.
    """
    plan = dataclasses.replace(desk.plan, steps=24, held_out=1500)
    own = Desk(plan)
    every, ffn = "q_proj+k_proj+v_proj+o_proj+gate_proj+up_proj+down_proj", "up_proj+down_proj"
    found = own.texts("law")
    plain = load(LARGER, dtype="float32", fast=False)
    before, home = score(plain, found.test), score(plain, own.home)

    def tried(first: float, last: float, targets: str) -> dict[str, Any]:
        model, _ = own.tuned("law", f"cofitune:first={first},last={last},targets={targets}", 1e-3, name=LARGER)
        return {"first": first, "last": last, "targets": targets, "gain": before - score(model, found.test),
                "forgets": score(model, own.home) - home}

    best = lambda nodes: max(nodes, key=lambda node: node["gain"] - node["forgets"])
    sixth = lambda n: round(n / 6, 4)
    ranges = [tried(sixth(a), sixth(b), every) for a, b in ((0, 2), (1, 3), (2, 4), (4, 6), (0, 3), (3, 6), (0, 6))]
    first = best(ranges)
    modules = [tried(first["first"], first["last"], targets) for targets in ("q_proj+k_proj+v_proj+o_proj", ffn)]
    second = best([first, *modules])
    middle = round((second["first"] + second["last"]) / 2, 4)
    halves = [tried(a, b, second["targets"]) for a, b in ((second["first"], middle), (middle, second["last"]))]
    return {"ranges": ranges, "modules": modules, "halves": halves, "best": best([second, *halves]),
            "paper": tried(0.25, 0.5, ffn)}


CHECKS: dict[str, Callable[[Desk], dict[str, Any]]] = {
    check.__name__: check for check in (compeft, signs, drops, interference, rank, density, context, law, buckets, layers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, []], default=list(CHECKS))
    parser.add_argument("--ledger", default="docs/ledger-controls.jsonl")
    given = parser.parse_args()
    book = Ledger(given.ledger)
    done = {record.method for record in book.read() if record.suite == SUITE}
    for name in given.checks:
        if name in done:
            continue
        desk = Desk()
        measured = CHECKS[name](desk)
        book.append(provenance.record(
            SUITE, load(MODEL, dtype="float32", fast=False), method=name, seed=0, inputs=sorted(set(desk.digests)),
            measured=json.loads(json.dumps(measured)), settings=desk.plan.sizes))
        print(name, json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
