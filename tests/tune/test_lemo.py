"""LeMo: rows that are left out, what is kept for the gradient, and predictors that find the blocks that matter."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lithe.cli import run
from lithe.contracts.adapter import IDS_BT, fresh, stir
from lithe.errors import UnsupportedError, UsageError
from lithe.model.cache import PlainCache
from lithe.model.config import Config
from lithe.model.decoder import ALL, Decoder
from lithe.model.fewer import FewerChannels, FewerTokens
from lithe.ops.blocks import informative, pooled, rows_of
from lithe.registry import find
from lithe.train import informative as looking, memory
from lithe.train.loss import Chunked
from lithe.tune.rack import Rack
from tests.cli.folders import spoken

torch.set_num_threads(1)
DICE = torch.Generator().manual_seed(0)


def method(model, **knobs):
    found = find("lemo")
    return found.module.Method(found.knobs(**knobs), model)


def test_scores_of_blocks_are_those_of_their_best_pair_in_both_directions():
    q, k = (torch.randn(1, heads, 7, 4, generator=DICE) for heads in (4, 2))
    found = pooled(q, k, 2)
    total = sum((q[0, h] @ k[0, h // 2].T / 2).clamp(min=0) for h in range(4)).tril()
    best = lambda i, j: total[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max()
    for i in range(3):
        for j in range(3):
            assert found[0, i, j] == pytest.approx(float(best(i, j) + best(j, i)), rel=1e-5)
    assert torch.allclose(informative(found)[0], found[0].sum(0)) and informative(found, causal=True)[0, 0] == found[0, 0, 0]
    assert rows_of(torch.tensor([[2, 0]]), 2, 7).tolist() == [[0, 1, 4, 5, 6]]


def swapped(model, kept, size=2):
    """The model with attention of its second layer for these blocks only, in training."""
    scores = lambda x, run, attention: torch.zeros(len(x), x.shape[1] // size).index_fill(1, torch.tensor(kept), 1.0)
    site = model.sites("layers.1.self_attn")[0]
    site.swap(FewerTokens(site.module, size, len(kept) / (IDS_BT.shape[1] // size), scores))
    return model.train()


def test_kept_rows_see_each_other_at_their_own_places_and_the_rest_gets_nothing():
    plain, model = fresh(), swapped(fresh(), [0, 3, 4])
    seen = []
    model.layers[1].self_attn.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    docs = torch.tensor([[0] * 7 + [1] * 3] * 4)
    model(IDS_BT, docs_BT=docs)
    x, out = seen[0]
    rows = [0, 1, 6, 7, 8, 9]
    alone = []
    plain.layers[1].self_attn.register_forward_hook(lambda module, args, y: alone.append(y))
    mask = torch.ones(6, 6, dtype=torch.bool).tril() & (docs[0, rows, None] == docs[0, rows])
    normed, plain.layers[1].attn_in_norm = x[:, rows], torch.nn.Identity()
    plain(embeds=normed, pos_BT=torch.tensor([rows] * 4), mask=mask, layers=[1])
    assert torch.allclose(out[:, rows], alone[0], atol=1e-12) and not out[:, [2, 3, 4, 5]].any()


def test_a_later_token_changes_nothing_before_it_while_the_same_blocks_run():
    model = swapped(fresh(), [1, 3])
    other = IDS_BT.clone()
    other[:, 7] = (other[:, 7] + 1) % 32
    a, b = (model(ids, logits=ALL).scores for ids in (IDS_BT, other))
    assert torch.equal(a[:, :7], b[:, :7]) and not torch.equal(a[:, 7:], b[:, 7:])
    with pytest.raises(UnsupportedError, match="without a cache"):
        model(IDS_BT, cache=PlainCache.like(model, batch=4))


def test_gradients_are_those_of_the_kept_channels_and_nothing_else_is_kept():
    base = fresh().layers[0].mlp
    x = torch.randn(1, 50, 32, generator=DICE, dtype=torch.float64, requires_grad=True)
    gate, up = F.silu(base.gate_proj(x)), base.up_proj(x)
    best = (gate.flatten(0, 1).norm(dim=0) + up.flatten(0, 1).norm(dim=0)).topk(16).indices
    mask = torch.zeros(64, dtype=torch.float64).index_fill(0, best, 1.0)
    inner = gate * up
    expected = torch.autograd.grad(base.down_proj(inner * mask + (inner * (1 - mask)).detach()).sum(), x)[0]
    host = FewerChannels(base.requires_grad_(False), 0.25).train()
    assert torch.equal(host(x), base(x))
    assert torch.allclose(torch.autograd.grad(host(x).sum(), x)[0], expected, atol=1e-12)
    few, whole = (memory.kept(lambda it=it: it(x * 1).sum(), base) for it in (host, base))
    assert few <= 0.26 * whole + 200


def shaped():
    """The small model of the specification, with low-rank adapters, on 512 tokens."""
    model = Decoder(Config(vocab=257, width=128, layers=4, heads=4, kv_heads=2, ffn=352, context=512, tied=True)).init(0)
    rack = Rack.of(model)
    stir(rack.make("lora:rank=8", name="a"), 1)
    rack.train("a")
    ids = torch.randint(0, 257, (1, 513), generator=torch.Generator().manual_seed(0))
    return model.train(), {"ids_BT": ids[:, :-1], "targets_BT": ids[:, 1:]}


def test_activations_of_half_the_tokens_and_channels_are_under_seven_tenths(tmp_path):
    model, batch = shaped()
    passes = lambda loss: memory.kept(lambda: loss(model, batch)[0], model)
    plain = passes(Chunked(64))
    np.save(tmp_path / "text.npy", np.random.default_rng(0).integers(0, 257, 3000))
    ours = method(model, keep=0.5, channels=0.5, block=16, whole=0.25, steps=5, rows=2, corpus=str(tmp_path / "text.npy"))
    ours.enter(model)
    assert sorted(ours.tokens) == [1, 2] and sum(host.share for host in ours.tokens.values()) == pytest.approx(1, abs=0.1)
    few = passes(ours.loss(Chunked(64)))
    assert few <= 0.7 * plain
    ours.leave(model)
    assert passes(Chunked(64)) == plain


def test_segments_give_the_loss_of_all_at_once_and_hold_fewer_logits():
    model, batch = shaped()
    ours = method(model, keep=1.0, channels=1.0, segment=64)
    whole, segments = Chunked(512), ours.loss(Chunked(512))
    assert segments.rows == 64
    a, b = (loss(model, batch)[0].item() for loss in (whole, segments))
    assert a == pytest.approx(b, rel=1e-6)

    def most(loss):
        """The largest tensor of logits that the loss makes."""
        sizes = []
        hook = model.norm.register_forward_hook(lambda module, args, y: sizes.append(y.numel() // 128 * 257 * 4))
        loss(model, batch)
        hook.remove()
        return max(sizes)

    assert most(whole) - most(segments) >= (1 - 1 / 8) * most(whole) * 0.8


def test_a_predictor_learns_which_blocks_matter():
    """Blocks that hold a mark matter to all others; the mark is in the text, and the predictor must find it."""
    inputs, scores = [], []
    for _ in range(10):
        loud = (torch.rand(16, generator=DICE) < 0.5).float()
        x = torch.randn(16, 4, 8, generator=DICE)
        x[:, 1, :2] += 3 * loud[:, None]
        inputs.append(x.view(1, 64, 8))
        scores.append((loud[:, None] + loud)[None])
    most, rest = looking.Seen(inputs[:8], scores[:8]), looking.Seen(inputs[8:], scores[8:])
    fit = partial(looking.fitted, most, 2, 4, hidden=16, rate=3e-3, dead=1.0)
    found, blind = (looking.recall(fit(steps=n, dice=torch.Generator().manual_seed(0)), rest, 0.4) for n in (300, 0))
    assert found >= 0.8 and blind < 0.7


def test_exact_scores_are_those_that_the_text_was_looked_at_with(tmp_path):
    np.save(tmp_path / "text.npy", np.random.default_rng(0).integers(0, 257, 3000))
    model, batch = shaped()
    ours = method(model, keep=0.5, channels=1.0, block=16, whole=0.25, scores="exact", rows=2,
                  corpus=str(tmp_path / "text.npy"))
    seen = looking.look(model.eval(), [batch], [1], 16)[1]
    ours.enter(model.train())
    given = []
    tell = ours.tokens[1].scores
    ours.tokens[1].scores = lambda *args: given.append(tell(*args)) or given[-1]
    model(batch["ids_BT"])
    assert torch.allclose(given[0], informative(seen.scores[0]), rtol=1e-5)


def test_shares_differ_by_layer_and_meet_the_mean():
    even = torch.eye(4).unsqueeze(0)
    steep = torch.diag(torch.tensor([8.0, 4.0, 0.1, 0.1])).unsqueeze(0)
    found = looking.shares({0: looking.Seen([], [even]), 1: looking.Seen([], [steep])}, 0.75)
    assert found[0] == 1 and found[1] == 0.5


def test_it_is_joined_to_a_method_and_leaves_an_ordinary_adapter(tmp_path, capsys):
    rows = "".join(json.dumps({"prompt": f"{n} ", "completion": "xyz " * 6}) + "\n" for n in range(20))
    (tmp_path / "data.jsonl").write_text(rows)
    for words in ([], ["--checkpointing"]):
        out = tmp_path / ("out" + "".join(words))
        lemo = f"lemo:keep=0.4,channels=0.5,block=4,whole=0,steps=3,corpus={tmp_path / 'data.jsonl'}"
        code = run(["tune", str(spoken()), "--data", str(tmp_path / "data.jsonl"), "-o", str(out), "--batch-tokens", "60",
                    "--lr", "1e-2", "--steps", "3", "--json", "--method", f"lora:rank=2 + {lemo}", *words])
        told = capsys.readouterr()
        assert code == 0, told.err
        names = json.loads((out / "adapter_config.json").read_text())["target_modules"]
        assert "base" not in str(names)
    assert run(["tune", str(spoken()), "--data", str(tmp_path / "data.jsonl"), "-o", str(tmp_path / "no"), "--method",
                "lora + lemo"]) == 2
    assert "give corpus" in capsys.readouterr().err


def test_rows_before_the_text_are_refused():
    model = fresh()
    Rack.of(model).make("prefix_tuning", name="a")
    host = partial(FewerTokens, size=2, share=0.5, scores=None)
    with pytest.raises(UnsupportedError, match="rows before the text"):
        method(model, keep=1.0)._put(model, "layers.0.self_attn", host)
    with pytest.raises(UsageError, match="give corpus"):
        method(model)
