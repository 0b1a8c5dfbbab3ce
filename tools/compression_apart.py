"""Sections of docs/compression.md that no plan of the suite holds: what tools measured, means over seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

from lithe.bench.compress import DENSE
from lithe.bench.compress._rows import compared, crossed
from lithe.bench.ledger import Record

LOGS = Path(__file__).resolve().parent.parent / "docs" / "log" / "compress"
APART = (  # row, file beside the logs, what, its key, figures by name; nats a token, or a byte where models read bytes
    (74, "sharing.jsonl", "bytes from scratch; 1 / {} of the layers' weights", "times",
     ("dense", "fold", "hash", "random", "magnitude", "snip", "grasp", "lottery")),
    (102, "transfer.jsonl", "tuned on another text, {} steps", "steps", ("dense", "dense_tuned_0.001", "healed_tuned_0.001")),
    (117, "ftwt.jsonl", "FFNs tuned beside predictors, tau {}", "tau",
     ("dense", "loss_predicted", "loss_fixed_and_tuned", "loss_drawn", "on", "recall", "recall_fixed")),
    (117, "ftwt-relu.jsonl", "FFNs tuned beside predictors, bytes, ReLU, tau {}", "tau",
     ("dense", "loss_predicted", "loss_fixed_and_tuned", "loss_drawn", "on", "recall", "recall_fixed")),
    (162, "overfit.jsonl", "{} bits fitted to 16 rows of 128 tokens; own: on these", "bits",
     ("dense", "rtn", "adaquant", "adaquant_own", "end_to_end_0.0001", "end_to_end_0.0001_own", "end_to_end_0.001",
      "end_to_end_0.001_own")),
    (162, "layers.jsonl", "layers fitted to {} rows: their error on held-out rows over that of rounded ones", "rows",
     ("w2a16", "w2a16_worst", "w4a4", "w4a4_worst")),
    (98, "drawn.jsonl", "3 bits on average, evolution beside the best of {} random plans", "plans",
     ("dense", "evopress", "best of random", "kl least", "kl median")))
THIRD = "dense, FFN of a third"
SCRATCH = (  # row, its way, what it is beside
    (8, "sr-ste, 1:4", "straight-through, 1:4"),
    (8, "sr-ste, 1:4, a tenth of the pull", "straight-through, 1:4"),
    (8, "sr-ste, 1:4, in the gradient", "straight-through, 1:4"),
    (8, "sr-ste, 1:4", "dense, then cut to 1:4"),
    (8, "sr-ste, FFN 1:8", "straight-through, FFN 1:8"),
    (36, "progressive gradient flow, FFN 1:8", "straight-through, FFN 1:8"),
    (36, "progressive gradient flow, FFN 1:8", "sr-ste, FFN 1:8"),
    *((36, "progressive gradient flow, FFN 1:32", f"{other}, FFN 1:32") for other in ("straight-through", "sr-ste")),
    (8, "sr-ste, 1:4, 1500 steps", "straight-through, 1:4, 1500 steps"),
    (74, "folded, 4x", "hashed, 4x"),
    (74, "folded, 4x", "dense, a quarter of the weights"),
    (74, "folded, 10x", "hashed, 10x"),
    (74, "folded, 10x", "dense, a tenth of the weights"),
    (111, "fast sparse, 80 %", "gone at once, 80 %"),
    *((111, f"fast sparse, 80 %{long}", f"dense, a fifth of the weights{long}") for long in ("", ", 1500 steps")),
    *((168, f"{form}{how}", other) for form in ("low rank", "block dense", "block shuffle") for how, other in (
        (", guided", form), (", guided", THIRD), (", guided, saving", form), ("", THIRD), ("", f"{form}, random factors"))),
    *((168, f"wide, {form}{how}", DENSE) for form in ("low rank", "block dense") for how in ("", ", guided")))
BITS, OTHERS = "bits", ("all kinds", "one of zeros", "one of low rank", "one of halves gone")  # of compression_hull.py
HULL = """By `tools/compression_hull.py`: GPTQ's 2, 3 and 4 bits in groups of 128 and 32 and vectors of 2 bits, against these
with zeros, low rank and missing halves beside them. **sum**: what options lose alone, in KL on calibration text, added up: of
the best plan of bits, and the least that any mix could have, sites split between options. **one of**: the best plan that must
hold one such site or half. Gains, in nats on held-out text, are over bits alone. On the lower hull of their site below 4.5 bits
lie, all seeds together: {}."""


def apart() -> list[str]:
    """What tools measure beside the suite, from the lines that they print."""
    lines = ["| row | what | means over seeds | seeds |", "| --: | --- | --- | --: |"]
    for number, file, what, key, names in APART:
        told = [json.loads(line) for line in (LOGS / file).read_text().splitlines()]
        told = [one | {one["way"]: one["loss"]} if "way" in one else one for one in told]
        told = [one for one in told if key in one]  # a file may hold lines of another measurement
        for value in dict.fromkeys(one[key] for one in told):
            own = {name: [one[name] for one in told if name in one and (one[key] == value or one.get("way") == DENSE)]
                   for name in names}
            figures = "; ".join(f"{name.removeprefix('loss_').replace('_', ' ')} {mean(found):.3f}"
                                for name, found in own.items() if found)
            if own[names[1]]:
                lines.append(f"| {number} | {what.format(f'{value:g}')} | {figures} | {len(own[names[1]])} |")
    said = ("By `tools/sharing.py`, `lowrank.py`, `ftwt.py`, `compression_overfit.py` and `compression_drawn.py`, whose lines "
            "lie in `docs/log/compress`; what each figure is stands in the log of its row there.")
    return ["## Measured apart", said, "\n".join(lines)]


def gains(own: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> str:
    """What the other loses more, nats a token, over the seeds that both have."""
    both = sorted(own.keys() & other.keys())
    if not both:
        return ""
    found = compared(*([SimpleNamespace(measured=side[seed]) for seed in both] for side in (other, own)))  # type: ignore[arg-type]
    low, high = crossed(*found)
    said = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    return f"{found[0].sum() / found[1].sum():+.4f} ({low:+.4f} to {high:+.4f}), {said}"


def scratch(records: list[Record]) -> list[str]:
    """What models trained under a mask from the first step on lose."""
    by: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        if record.suite == "scratch" and record.seed is not None:
            by[record.method][record.seed] = record.measured
    lines = ["| row | method | loss | changes of the mask | beside | its loss | its changes | gains | seeds |",
             "| --: | --- | --: | --: | --- | --: | --: | --: | --: |"]
    for number, way, other in SCRATCH:
        if by[way].keys() & by[other].keys():
            both = len(by[way].keys() & by[other].keys())
            lines.append(f"| {number} | {way} | {_loss(by[way])} | {_changes(by[way])} | {other} | {_loss(by[other])} | "
                         f"{_changes(by[other])} | {gains(by[way], by[other])} | {both} |")
    said = ("By `tools/compression_scratch.py` (suite `scratch` of the ledger): a byte model, 3 layers of width 96, 300 steps "
            "(or what a name says) of 768 bytes of TinyStories, nats a byte on 24,576 held-out ones"
            + (f"; dense {_loss(by[DENSE])}" if by[DENSE] else "") + ". Changes: entries that came or went, over weights.")
    return ["## From the first step on", said, "\n".join(lines)] if len(lines) > 2 else []


def _loss(found: dict[int, dict[str, Any]]) -> str:
    return f"{mean(one['loss'] for one in found.values()):.4f}"


def _changes(found: dict[int, dict[str, Any]]) -> str:
    told = [one["mask_changes"] for one in found.values() if "mask_changes" in one]
    return f"{mean(told):.2f}" if told else ""


def hulls() -> list[str]:
    """Whether zeros, low rank or missing halves could help a plan of bits."""
    path = LOGS / "hull.jsonl"
    told = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = ["| model | bits | bits alone: sum | any mix: sum | bits alone: more | all kinds: gains | one of zeros: gains | "
             "one of low rank: gains | a half gone: gains | seeds |", "| --- | --: |" + " --: |" * 8]
    on = []
    for model in dict.fromkeys(one["model"] for one in told):
        own = [one for one in told if one["model"] == model]
        dense = {one["seed"]: one for one in own if one["way"] == DENSE}
        own = [{"tokens": dense[one["seed"]]["tokens"]} | one for one in own]
        for kind in ("zeros", "low rank"):
            held, whole = (sum(one["hull"][kind][what] for one in dense.values()) for what in ("on_hull", "options"))
            on.append(f"{model.removeprefix('zoo:')} {held} of {whole} of {kind}")
        for bits in dict.fromkeys(one["bits"] for one in own if "bits" in one):
            by = {way: {one["seed"]: one for one in own if one.get("bits") == bits and one["way"] == way}
                  for way in (BITS, *OTHERS)}
            alone = by[BITS]
            figures = [f"{mean(one[name] for one in alone.values()):.4f}" for name in ("sum", "bound")]
            figures.append(f"{mean(one['loss'] - dense[seed]['loss'] for seed, one in alone.items()):+.4f}")
            figures += ["the same plan" if _same(by[way], alone) else gains(by[way], alone) for way in OTHERS]
            lines.append(f"| {model.removeprefix('zoo:')} | {bits:g} | {' | '.join(figures)} | {len(alone)} |")
    return ["## Could other kinds help a plan of bits?", HULL.format("; ".join(on)), "\n".join(lines)] if told else []


def _same(found: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> bool:
    return all(found[seed]["nats"] == other[seed]["nats"] for seed in found)
