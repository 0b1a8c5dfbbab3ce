"""Greedy text on real prompts is plain decoding's, and plain decoding's is that of transformers.

The short form; 80 prompts x 128 tokens are a ledger entry (`lithe bench`, columns same and of).
"""

from pathlib import Path

import pytest
import torch

import lithe
from lithe import registry
from lithe.cli._common import read_prompts
from lithe.contracts.draft import modest
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.model.load import ZOO, load
from lithe.train.fitted import FRESH, NOTES, SHIPPED, read_notes

PROMPTS = read_prompts(ZOO / "prompts" / "mixed.jsonl")
TEXT = Path(__file__).parents[2] / "docs" / "architecture.md"
DRAFTS = [f"{e.address}:corpus={TEXT}" if "corpus" in e.card.needs else
          f"{e.address}:{','.join([f'heads={FRESH}', *(f'{name}={n}' for name, n in modest(e).items())])}" if e.card.trains
          else e.address
          for e in registry.entries("decode", "draft") if "same_tokens" in e.card.promises]
HEADS = {path.parent.name: read_notes(path.parent) for path in SHIPPED.glob(f"*/{NOTES}")}


@pytest.fixture(scope="module")
def model():
    return lithe.load("zoo:tiny")


def greedy(made, prompts, tokens):
    batch = [request(made.model, prompt, max_tokens=tokens) for prompt in prompts]
    for _ in run(made, batch):
        pass
    return [sequence.tokens for sequence in batch]


@pytest.fixture(scope="module")
def plain(model):
    return greedy(plan(model), PROMPTS[:10], 24)


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_draft_gives_plain_text(model, plain, draft):
    made = plan(model, draft=draft)
    assert greedy(made, PROMPTS[:10], 24) == plain  # a ragged batch
    assert [greedy(made, [prompt], 24)[0] for prompt in PROMPTS[:3]] == plain[:3]  # one by one, drafts already warm


@pytest.mark.parametrize("heads", sorted(name for name, notes in HEADS.items() if notes["fitted_to"] == "zoo:tiny"))
def test_shipped_heads_give_plain_text_in_fewer_passes(model, plain, heads):
    method = HEADS[heads]["method"]
    batch = [request(model, prompt, max_tokens=24) for prompt in PROMPTS[:10]]
    passes = sum(1 for _ in run(plan(model, draft=f"{method}:heads={SHIPPED / heads}"), batch))
    assert [s.tokens for s in batch] == plain
    assert passes < sum(len(s.tokens) for s in batch)
    assert (SHIPPED / method / NOTES).is_file()  # so that the method finds one when none is named


def test_plain_text_is_that_of_transformers(model, plain):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    for prompt, ours in zip(PROMPTS[:8], plain, strict=False):
        ids = torch.tensor([model.tokenizer.encode(prompt)])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert out[0, ids.shape[1] :].tolist() == ours


def test_the_draft_model_knows_the_same_tokens(model):
    from lithe.model.load import vocabulary_mismatch

    assert vocabulary_mismatch(model, load("zoo:tiny-draft")) is None
