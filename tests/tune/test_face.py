"""`lithe.tune`: what the verb does, from Python."""

import json

import pytest
import torch

import lithe
from lithe.cli import run
from lithe.errors import UsageError
from tests.cli.folders import spoken


def test_it_does_what_the_verb_does(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n} ", "completion": "xyz"}) + "\n" for n in range(20)))
    told = lithe.tune(spoken(), data, tmp_path / "here", method="bitfit", steps=3, batch_tokens=60, lr=1e-2, packing=True,
                      bins=0, quiet=True)
    assert told["steps"] == 3
    assert run(["tune", str(spoken()), "--data", str(data), "-o", str(tmp_path / "there"), "--method", "bitfit", "--steps", "3",
                "--batch-tokens", "60", "--lr", "1e-2", "--packing", "--bins", "0", "--json"]) == 0
    file = "adapter_model.safetensors"
    assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
    model = lithe.load(spoken(), fast=False)
    plain = model(torch.tensor([[55, 32]])).logits
    lithe.attach(model, tmp_path / "here")
    assert not torch.equal(model(torch.tensor([[55, 32]])).logits, plain)
    with pytest.raises(UsageError, match="no setting 'step'; did you mean steps"):
        lithe.tune(spoken(), data, tmp_path / "other", step=3)
