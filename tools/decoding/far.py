"""A draft that reads parts of prompts longer than tiny's context, by count and by the bytes of a pass, into the ledger.

    tools/decoding/far.py [--lengths N ...] [--prompts N] [--ledger FILE]

tiny's 1,024 places are stretched to 4,096 by YaRN, untrained: held-out books cost it 3.48 nats a token before and 3.51 over
4,096. Each prompt ends with the first half of a text that stands a third from its beginning. Greedy; no time is measured. By
bytes: a pass reads the weights and the rows of its cache, so a token of plain decoding costs W + L r.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from long import again

import lithe
from lithe.bench import stats
from lithe.bench.ledger import Ledger
from lithe.bench.provenance import record
from lithe.cli._common import read_prompts
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.decoder import Decoder
from lithe.model.fast import fuse
from lithe.model.load import ZOO

LEDGER = Path(__file__).resolve().parent.parent.parent / "docs" / "ledger-decoding.jsonl"
CONTEXT, FACTOR, TOKENS, BUDGET = 4096, 4.0, 32, 256
SMALL = "zoo:tiny-draft"
READ = ("choose=bm25", "choose=cosine", "choose=first", "choose=random")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--lengths", type=int, nargs="+", default=[2000])
    asked.add_argument("--prompts", type=int, default=16)
    asked.add_argument("--ledger", type=Path, default=LEDGER)
    given = asked.parse_args()
    model, shipped, ledger = stretched("zoo:tiny"), read_prompts(ZOO / "prompts" / "mixed.jsonl"), Ledger(given.ledger)
    for length in given.lengths:
        texts = again(shipped, model.tokenizer, given.prompts, length)
        for drafter, small in (("", None), (f",model={SMALL}", lithe.load(SMALL))):
            specs = {read: f"rapid:budget={BUDGET},chunk=32,{read}{drafter}" for read in READ}
            counts = {read: counted(model, spec, texts) for read, spec in specs.items()}
            found = {read: told(count, counts["choose=first"], model, small or model) for read, count in counts.items()}
            print(length, drafter, found, flush=True)
            made = plan(model, draft=specs[READ[0]])
            ledger.append(record("far", model, measured=found, inputs=texts, seed=0, method=specs[READ[0]], knobs=made.knobs,
                                 settings={"length": length, "max_tokens": TOKENS, "context": CONTEXT, "factor": FACTOR},
                                 parts=[made.draft, *made.parts]))


def stretched(name: str) -> Decoder:
    """The model with more places than it was trained on."""
    model = lithe.load(name, fast=False)
    rope = dataclasses.replace(model.config.rope, kind="yarn", factor=FACTOR, original_context=model.config.context)
    made = Decoder(model.config.replace(context=CONTEXT, rope=rope))
    made.load_state_dict(model.state_dict())
    made.tokenizer, made.token_ids, made.settings = model.tokenizer, model.token_ids, model.settings
    made.source = f"{name}, stretched to {CONTEXT}"
    fuse(made.eval(), "fp32", 0)
    return made


def counted(model: Decoder, spec: str, texts: list[str]) -> list[tuple[int, int, int, int]]:
    """Of each prompt: its tokens, those said, passes, tokens drafted."""
    made, found = plan(model, draft=spec), []
    for text in texts:
        sequence = request(model, text, max_tokens=TOKENS, ignore_eos=True)
        steps = list(run(made, [sequence]))
        found.append((sequence.prompt, len(sequence.tokens), len(steps), sum(step.nodes - 1 for step in steps)))
    return found


def told(count: list, first: list, model: Decoder, draft: Decoder) -> dict:
    """Tokens a pass beside the first chunks', rows of caches read a token, speed by bytes, and the length where it is 1."""
    columns = [np.array(side, dtype=float)[:, n, None] for side in (count, first) for n in (1, 2)]
    prompt, said, passes, drafted = np.array(count, dtype=float).sum(0)
    length = prompt / len(count)
    (W, r), (w, q) = (bytes_of(one) for one in (model, draft))
    drafting = drafted * (w + BUDGET * q)
    return {"tokens_per_pass": round(float(said / passes), 3), "accepted": [int(said - passes), int(drafted)],
            "over_first": [round(float(x), 3) for x in (apart(*columns), *(stats.interval(apart, *columns) or (0, 0)))],
            "rows": round((passes * length + drafted * BUDGET * (draft is model)) / said), "plain_rows": round(length),
            "modelled": round(float(said * (W + length * r) / (passes * (W + length * r) + drafting)), 3),
            "pays_from": max(0, round((drafting / (said - passes) - W) / r)) if said > passes else None}


def bytes_of(model: Decoder) -> tuple[int, int]:
    """Of the weights that a pass reads, and of a row of the cache."""
    c = model.config
    return 4 * model.size, sum(8 * c.layer(i).kv_heads * c.layer(i).head_dim for i in range(c.layers))


def apart(said, passes, first_said, first_passes):
    total = lambda column: column.sum((-2, -1))
    return total(said) / total(passes) - total(first_said) / total(first_passes)


if __name__ == "__main__":
    main()
