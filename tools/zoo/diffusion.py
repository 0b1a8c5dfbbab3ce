"""Train the zoo's diffusion models on drawn tasks, and export them; and tiny-ar, their rival of equal size, which reads from
left to right. The same command resumes an interrupted run.

python tools/zoo/diffusion.py tiny-diffusion [--seconds N] [--zoo .lithe/zoo] [--to lithe/zoo]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import canvases
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lithe.bench.parallel._ar import Rival
from lithe.bench.parallel._suite import Course, cells
from lithe.bench.parallel._tasks import END, OPEN, VOCABULARY, WIDER, draw
from lithe.model.checkpoint import save
from lithe.model.config import Config, Rope
from lithe.model.decoder import Decoder
from lithe.model.load import load
from lithe.train import checkpoint
from lithe.train.batches import IGNORED, Batch
from lithe.train.loop import Plan, fit
from lithe.train.loss import next_token
from lithe.train.masked import Noised, denoising
from lithe.train.optim import Optimizer
from lithe.train.schedule import Wsd

PACKAGE = Path(__file__).resolve().parents[2] / "lithe" / "zoo"
ID = {word: i for i, word in enumerate(VOCABULARY)}
SHARES = dict(copy=2, reverse=2, sort=2, replace_index=2, insert_index=2, remove_index=2, shuffle=1, replace_random=1,
              insert_random=1, remove_random=1, add=1, addr=2)  # Latin squares are not among what the zoo's models learn
PROMPT, ROOM, ROWS = 13, 8, 40  # places of the longest prompt and of an answer with an end, rows of a step
ROOMS = (18, 40, 80, 160, 480)  # of the longer canvases, which hold ends of text for the most part
EVERY = 16  # steps between them
COUNT = 200  # problems of a task that a card tells of
BASE = dict(vocab=len(VOCABULARY), width=64, layers=3, heads=2, kv_heads=2, ffn=176, context=512, tied=True,
            mask_token=ID[OPEN], rope=Rope(theta=100.0))  # rows are short: slower turns would tell places apart too little
LONG = "tiny-diffusion-long"  # learns canvases of all lengths and answers of several lines
KINDS = {"tiny-diffusion": dict(attends="full"), "tiny-block": dict(attends="blocks", block=4),
         "tiny-diffusion-moe": dict(attends="full", experts=16, experts_per_token=4, expert_ffn=44),
         LONG: dict(attends="full", layers=4, vocab=len(WIDER), context=1024),
         "tiny-ar": dict(attends="causal", mask_token=None)}
STARTS = dict.fromkeys(("tiny-block", "tiny-diffusion-moe", LONG), "tiny-diffusion")  # those that begin with another's layers


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Rows of fresh problems, each by (seed, step, row): prompt, answer, then ends of text up to one length."""

    rows: int = ROWS
    room: int = ROOM
    seed: int = 0

    def __call__(self, step: int) -> Batch:
        share = np.array(list(SHARES.values()), float)
        ids, learned = [], []
        for row in range(self.rows):
            dice = np.random.default_rng([self.seed, step, row])
            problem = draw(list(SHARES)[int(dice.choice(len(SHARES), p=share / share.sum()))], dice)
            text = [ID[word] for word in (*problem.prompt, *problem.answer)]
            ids.append(text + [ID[END]] * (PROMPT + self.room - len(text)))
            learned.append([i >= len(problem.prompt) for i in range(PROMPT + self.room)])
        return {"ids_BT": torch.tensor(ids), "learned_BT": torch.tensor(learned)}


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A step's rows, now and then of long canvases."""

    block: int = 0

    def __call__(self, step: int, ending: bool = False) -> Batch:
        turn, between = divmod(step, EVERY)
        room = ROOMS[turn % len(ROOMS)]
        drawn = Drawn() if between else Drawn(room=room, rows=max(2, 640 // room), seed=1)
        return Noised(rows=drawn, mask=ID[OPEN], block=self.block, spread=True)(step)


def following(step: int, ending: bool = False) -> Batch:
    """The same rows for a model that reads from left to right: what follows in an answer, up to its end."""
    batch = Drawn()(step)
    before_BT, after_BT, learned_BT = batch["ids_BT"][:, :-1], batch["ids_BT"][:, 1:], batch["learned_BT"][:, 1:]
    ended_BT = (before_BT == ID[END]) & (after_BT == ID[END])
    return {"ids_BT": before_BT.contiguous(), "targets_BT": after_BT.masked_fill(~learned_BT | ended_BT, IGNORED)}


def begin(model: Decoder, other: Decoder) -> None:
    """Take over what has the same name; experts that have none take rows of the dense layer they replace, drawn at random.

    Their outputs are scaled so that those of a token add up to the dense layer's, as far as a part can stand for the whole.
    """
    found, own = other.state_dict(), model.state_dict()
    taken = {name: found[name] for name in own if name in found}
    dice, config = torch.Generator().manual_seed(0), model.config
    for name in own:
        layer, _, rest = name.partition(".mlp.experts.")
        if rest:
            number, matrix = rest.split(".", 1)
            dense = found[f"{layer}.mlp.{matrix}"]
            rows = torch.randperm(dense.shape[1 if "down" in matrix else 0], generator=dice.manual_seed(int(number)))
            rows = rows[: config.expert_ffn]
            scale = other.config.layer(0).ffn / config.expert_ffn
            taken[name] = dense[:, rows] * scale if "down" in matrix else dense[rows]
    model.load_state_dict(taken, strict=False)


def lengthen(model: Decoder, other: Decoder) -> None:
    """Take over a shallower model's words, and its layers behind a first one that adds nothing yet.

    An operation on lines begins as that on lists.
    """
    found, more = other.state_dict(), model.config.layers - other.config.layers
    words = found["embed_tokens.weight"]
    taken = {}
    for name, weight in model.state_dict().items():
        first, _, rest = name.removeprefix("layers.").partition(".")
        if name.startswith("embed"):
            rows = [ID.get(word, ID.get(word.removesuffix("_lines"), ID["="])) for word in WIDER]
            taken[name] = words[rows]
        elif not name.startswith("layers."):
            taken[name] = found[name]
        elif int(first) >= more:
            taken[name] = found[f"layers.{int(first) - more}.{rest}"]
        elif "o_proj" in rest or "down_proj" in rest:
            taken[name] = torch.zeros_like(weight)
    model.load_state_dict(taken, strict=False)


def card(folder: Path, run: Path) -> str:
    """What the model is, what it learned from, and what it is worth: accuracy by task, one token a step."""
    model, state = load(folder), checkpoint.read_state(checkpoint.latest(run))
    causal, wider = model.config.attends == "causal", model.config.vocab > len(VOCABULARY)
    course, tasks = (Rival if causal else Course)(model), canvases.TASKS if wider else SHARES
    count = COUNT // 5 if wider else COUNT  # lines take longer
    found = course.run(list(cells(tasks, [""], count)))
    long = course.run(list(cells(tasks, ["confident"], COUNT // 10, places=256))) if wider else []
    right = lambda r: f"{r.measured['right'].count('1') / r.settings['problems']:.1%}"
    share = lambda r: f"{right(r)} | {sum(r.measured['tokens']) / count:.1f}"
    head = ["| task | right | words of an answer |" + f" right of {COUNT // 10}, 256 places |" * wider,
            "|---" * (3 + wider) + "|"]
    more = [f" {right(r)} |" for r in long] or [""] * len(found)
    lines = head + [f"| {r.settings['task']} | {share(r)} |{each}" for r, each in zip(found, more, strict=True)]
    kind = {"full": "every place sees every other", "blocks": f"blocks of {model.config.block} places, one after the other",
            "causal": "it reads from left to right"}
    c, millions = model.config, sum(weight.numel() for weight in load(folder, fast=False).parameters()) / 1e6
    experts = f", {c.experts} experts a layer of which {c.experts_per_token} run" if c.experts else ""
    told = (dict(what="model", use="measured against", loss="the loss of the next word of an answer") if causal else
            dict(what="masked diffusion model", use="tested and measured on", loss="LLaDA's loss" + " (ends of text behind an "
                 "answer have a noise of their own)" * wider))
    return CARD.format(name=folder.name, millions=millions, kind=kind[c.attends], experts=experts, c=c, steps=state["step"],
                       minutes=state["seconds"] / 60, lines="\n".join(lines), count=count,
                       start=f", beginning with {STARTS[folder.name]}" if folder.name in STARTS else "", **told,
                       more="; and on canvases of 256 places, taking what is sure (`confident`)" if wider else "")


CARD = """---
license: apache-2.0
language: en
library_name: lithe
---
# {name}

A {what} of {millions:.2f} M parameters that lithe's sampler is {use}: {kind}{experts}.
It answers problems in a vocabulary of {c.vocab} words and knows nothing else: a test object.

- Layout: Llama, {c.layers} layers, width {c.width}, {c.heads} heads, FFN {c.ffn}, context {c.context}, tied, bf16.
- Learned from drawn problems alone (`lithe/bench/parallel/_tasks.py`), by {loss}, {steps:,} steps in {minutes:.0f}
  minutes of a shared core{start}: `python tools/zoo/diffusion.py {name}`. Nothing was downloaded.
- Try it: `lithe generate zoo:{name} "reverse : ant bear cat deer _ _ =" --max-tokens 8`.

One token a step, {count} problems of each task that were not learned from, judged by rule{more}:

{lines}
"""


def companions(folder: Path, wider: bool = False) -> Path:
    """What lies beside the weights: a tokenizer of whole words. wider: that knows newlines between blanks."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Tokenizer(models.WordLevel(canvases.ID if wider else ID, unk_token=OPEN))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "removed") if wider else pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([END, OPEN])
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "mask_token": OPEN, "chat_template": "{{ messages[-1]['content'] }}"}  # a problem a message
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for file in ("config.json", "generation_config.json"):
        (folder / file).write_text(json.dumps({"eos_token_id": ID[END], "pad_token_id": ID[END]}, indent=2) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=3000)
    parser.add_argument("--steps", type=int, help="instead of seconds")
    parser.add_argument("--zoo", type=Path, default=Path(".lithe/zoo"))
    parser.add_argument("--to", type=Path, default=PACKAGE)
    parser.add_argument("--start", type=Path, help="a model to begin with: its layers are the new one's, or its experts'; by "
                                                    "default the one that this kind begins with")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--card", action="store_true", help="train nothing: measure what was exported and write its card")
    options = parser.parse_args()
    if options.card:
        (options.to / options.model / "README.md").write_text(card(options.to / options.model, options.zoo / options.model))
        return
    settings = BASE | KINDS[options.model]
    model = Decoder(Config(**settings)).init(0)
    with torch.no_grad():  # as wide as the layers are narrow: at the usual 0.02 no place would stand out to begin with
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not name.startswith("embed"):
                weight.mul_(50 * settings["width"] ** -0.5)
    if options.start is not None or options.model in STARTS:
        other = load(options.start or options.to / STARTS[options.model], dtype="float32", fast=False)
        (lengthen if settings["layers"] > other.config.layers else begin)(model, other)
    flat = (options.steps or 0) * 3 // 4
    ending = dict(decay_from=flat, decay_steps=options.steps - flat) if options.steps else {}
    plan = Plan(schedule=Wsd(warmup=100, **ending), optimizer=Optimizer(name="adamw", lr=options.rate), log_every=100,
                seconds=None if options.steps else options.seconds)
    causal, wider = settings["attends"] == "causal", settings["vocab"] > len(VOCABULARY)
    drawn = following if causal else canvases.Rows() if wider else Batches(block=settings.get("block", 0))
    fit(model, drawn, next_token if causal else denoising, plan, folder=options.zoo / options.model)
    folder = save(model.eval(), options.to / options.model, dtype=torch.bfloat16,
                  tokenizer_from=companions(options.zoo / ("lines" if wider else "words"), wider), overwrite=True)
    (folder / "model.safetensors").chmod(0o644)
    print(folder)


if __name__ == "__main__":
    main()
