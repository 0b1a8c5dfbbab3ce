"""A model tuned to say lexical units, beside plain decoding of it and of the model it was: counts and what its text costs.

    tools/decoding/units.py TUNED [--text FILE] [--limit N] [--max-tokens N] [--ledger FILE]

TUNED: what `lithe units zoo:tiny` made. Greedy, on the first shipped prompts; what a text costs is nats a token under the model
before tuning. --text (.npy of ids): what neither learned from, for plain loss. One record of the ledger holds it all; no time
is measured. Axes: B texts, T tokens.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import lithe
from lithe.bench import stats
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.cli._common import read_prompts
from lithe.decode.generate import request
from lithe.decode.lexical import widened
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.decoder import ALL
from lithe.model.load import ZOO

LEDGER = Path(__file__).resolve().parent.parent.parent / "docs" / "ledger-decoding.jsonl"
MODEL, SIDE = "zoo:tiny", 12  # prompts decoded side by side
ALPHAS = (0.5, 0.7, 0.9, 1.01)
VERIFIED = ("draft=lud", "draft=lud:alpha=0.3", "jacobi:tokens=4", "prompt_lookup")
CONTROL = "search=lud"
ROWS, LENGTH = 64, 256  # of --text


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("tuned", type=Path)
    asked.add_argument("--text", type=Path)
    asked.add_argument("--limit", type=int, default=24)
    asked.add_argument("--max-tokens", type=int, default=48)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    given = asked.parse_args()
    before, tuned, ledger = lithe.load(MODEL), lithe.load(str(given.tuned)), Ledger(given.ledger)
    prompts = read_prompts(ZOO / "prompts" / "mixed.jsonl")[: given.limit]
    searches = [f"search=lud:alpha={alpha}" for alpha in ALPHAS]
    sides = [("tuned", tuned, spec) for spec in ("plain", *searches, *VERIFIED)]
    sides += [("before", before, "plain"), ("widened, not tuned", widened(lithe.load(MODEL, fast=False)).eval(), CONTROL)]
    found = {}
    for name, model, spec in sides:
        found[f"{name}: {spec}"] = said, steps = texts(model, spec, prompts, given.max_tokens)
        print(f"{name}: {spec}: {sum(map(len, said)) / sum(steps):.3f} tokens a step", flush=True)
    plainly = found["tuned: plain"]
    nats = {name: cost(before, prompts, said) for name, (said, _) in found.items()}
    calm = [not stats.loops(said) for said in plainly[0]]
    measured = {"sides": {name: told(each, plainly, nats[name], nats["tuned: plain"], calm) for name, each in found.items()},
                "looping": 1 - sum(calm) / len(calm), "tuning": recipe(tuned)}
    if given.text:
        ids = np.load(given.text, allow_pickle=False)[: ROWS * LENGTH].reshape(-1, LENGTH)
        measured["plain_loss"] = {"before": loss(before, ids), "tuned": loss(tuned, ids)}
    made = [plan(tuned, draft=spec) for spec in (CONTROL, VERIFIED[0])]
    ledger.append(record("units", tuned, measured=measured, inputs=prompts, settings={"max_tokens": given.max_tokens}, seed=0,
                         method="lud", knobs={"before": MODEL}, parts=[each.search or each.draft for each in made]))
    for name, one in measured["sides"].items():
        print(name, one, flush=True)
    print(measured.get("plain_loss"))


def recipe(tuned) -> dict:
    receipt = tuned.receipts[-1]
    return receipt["recipe"] | {"tokens": receipt["tokens"], "loss": receipt["loss"]}


def texts(model, spec: str, prompts: list[str], most: int) -> tuple[list[list[int]], list[int]]:
    """What is said after each prompt, and in how many steps."""
    made = plan(model, draft=None if spec == "plain" else spec)
    said: list[list[int]] = []
    steps: list[int] = []
    for at in range(0, len(prompts), SIDE):
        batch = [request(model, prompt, max_tokens=most, ignore_eos=True) for prompt in prompts[at : at + SIDE]]
        passes = dict.fromkeys((s.number for s in batch), 0)
        for step in run(made, batch):
            passes[step.sequence.number] += 1
        said += [list(s.tokens) for s in batch]
        steps += [passes[s.number] for s in batch]
    return said, steps


@torch.inference_mode()
def cost(before, prompts: list[str], said: list[list[int]]) -> list[float]:
    """Nats of each text under the model before tuning, all tokens of it; a placeholder in it counts as the dearest token."""
    total = []
    for prompt, tokens in zip(prompts, said, strict=True):
        ids = before.tokenizer.encode(prompt)
        known = [min(token, before.config.vocab - 1) for token in tokens]
        law_TV = before(torch.tensor([ids + known]), logits=ALL).scores[0, len(ids) - 1 : -1].double().log_softmax(-1)
        nats_T = -law_TV.gather(-1, torch.tensor(known)[:, None])[:, 0]
        dearest_T = -law_TV.min(-1).values
        total.append(float(torch.where(torch.tensor(tokens) < before.config.vocab, nats_T, dearest_T).sum()))
    return total


def told(each, plainly, nats: list[float], plain_nats: list[float], calm: list[bool]) -> dict:
    """Tokens a step; what share of the tokens plain decoding of the tuned model says at their places; nats a token."""
    (said, steps), some = each, [i for i, still in enumerate(calm) if still]
    column = lambda values, places: np.array([values[i] for i in places], dtype=float)[:, None]
    counts, plain_counts = [len(tokens) for tokens in said], [len(tokens) for tokens in plainly[0]]
    made = {}
    for name, places in (("all", range(len(said))), ("calm", some)):
        if not places:
            continue
        a, b = column(counts, places), column(steps, places)
        dear, plain_dear = column(nats, places), column(plain_nats, places)
        plain_a = column(plain_counts, places)
        more = lambda dear, a, plain_dear, plain_a: dear.sum((-2, -1)) / a.sum((-2, -1)) / (
            plain_dear.sum((-2, -1)) / plain_a.sum((-2, -1))) - 1
        each_step = lambda a, b: a.sum((-2, -1)) / b.sum((-2, -1))
        made[name] = {"texts": len(a), "tokens_a_step": short(each_step(a, b)), "interval": spread(each_step, a, b),
                      "nats": short(dear.sum() / a.sum()), "dearer": short(more(dear, a, plain_dear, plain_a)),
                      "dearer_interval": spread(more, dear, a, plain_dear, plain_a)}
    pairs = [(x, y) for one, other in zip(said, plainly[0], strict=True) for x, y in zip(one, other, strict=False)]
    made["alike"] = short(np.mean([x == y for x, y in pairs]))
    made["same_texts"] = sum(one == other for one, other in zip(said, plainly[0], strict=True))
    made["looping"] = short(np.mean([stats.loops(tokens) for tokens in said]))
    return made


def spread(statistic, *columns) -> list[float]:
    return [short(end) for end in stats.interval(statistic, *columns) or (0.0, 0.0)]


def short(value) -> float:
    return round(float(value), 4)


@torch.inference_mode()
def loss(model, ids: np.ndarray) -> float:
    """Nats of the next token, of a text."""
    ids_BT, total = torch.from_numpy(ids.astype(np.int64)), 0.0
    for rows_BT in ids_BT.split(8):
        law_BTV = model(rows_BT, logits=ALL).scores[:, :-1].float().log_softmax(-1)
        total -= float(law_BTV.gather(-1, rows_BT[:, 1:, None]).sum())
    return short(total / ids_BT[:, 1:].numel())


if __name__ == "__main__":
    main()
