"""Compiled layers: parity with the Block they stand for, and rows that do not depend on their company, bit for bit."""

import copy

import pytest
import torch

from lithe.errors import UnsupportedError, UsageError
from lithe.kernels import library, twins
from lithe.model.cache import PlainCache
from lithe.model.config import Config, Rope
from lithe.model.decoder import ALL, Decoder
from lithe.model.fast import fuse
from lithe.model.mask import FULL, Blocks, Tree
from tests.kernels.variants import compiled, every_variant

pytestmark = compiled
ROWS = 41
KINDS = [("fp32", 0, torch.float32), ("bf16", 0, torch.bfloat16), ("int8", 32, torch.float32), ("int8", 128, torch.bfloat16),
         ("int4", 32, torch.bfloat16)]  # fmt: skip
every_kind = pytest.mark.parametrize(("kind", "group", "dtype"), KINDS)
GEMMA = {"activation": "gelu_tanh", "norm_out": True, "attn_cap": 2.0, "logit_cap": 3.0, "norm_offset": 1.0, "tied": True}
TRAITS = {
    "plain": {},
    "tied, narrow heads": {"tied": True, "head_dim": 8},
    "biases": {"qkv_bias": True, "out_bias": True, "head_dim": 20},
    "norms of heads, wide heads": {"qk_norm": "head", "head_dim": 144, "kv_heads": 1},
    "window": {"window": 7, "windowed": (True, False, True)},
    "llama3 rope": {"rope": Rope(kind="llama3", factor=8.0, original_context=64)},
    "half of a head rotates": {"rope": Rope(part=0.5), "head_dim": 40, "heads": 5, "kv_heads": 5},
    "gemma's norm": {"norm_offset": 1.0, "attn_scale": 0.3},
    "gelu, norms behind, a soft cap": GEMMA,
}


def decoder(seed=0, **traits) -> Decoder:
    settings = {"vocab": 50, "width": 72, "layers": 3, "heads": 6, "kv_heads": 2, "head_dim": 16, "ffn": 100, "context": 700}
    model, dice = Decoder(Config(**(settings | traits))).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=dice) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 0.1))
            if "norm" in name:
                p.add_(1.0 - model.config.norm_offset)
    return model


def ids(batch=2, rows=ROWS, seed=1):
    return torch.randint(0, 50, (batch, rows), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def passes(model, ids_BT, cuts):
    """Logits of all rows, computed in pieces that end at `cuts`."""
    cache, pieces, start = PlainCache.like(model, batch=len(ids_BT)), [], 0
    for end in cuts:
        pieces.append(model(ids_BT[:, start:end], cache=cache, logits=ALL).scores)
        cache.commit([end - start] * len(ids_BT))
        start = end
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("traits", TRAITS.values(), ids=TRAITS)
@every_variant
def test_parity_in_float32(kernels, traits, monkeypatch):
    monkeypatch.setenv("LITHE_KERNELS", kernels.name)
    model = decoder(**traits)
    expected = passes(model, ids(), [30, 31, ROWS])
    made = fuse(model, "fp32")
    assert made.fast.why == {} and (passes(made, ids(), [30, 31, ROWS]) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert made.fast.why == {}


@every_kind
def test_parity_with_the_same_arithmetic_in_pieces(kind, group, dtype):
    """The same packed matrices under PyTorch's norms, rotation and attention; rounding of activations may flip at ties."""
    made = fuse(decoder().to(dtype), kind, group)
    whole = passes(made, ids(), [30, ROWS])
    made.fast = None
    made.float()
    assert (passes(made, ids(), [30, ROWS]) - whole).abs().max() <= 3e-2 * whole.abs().max()


@every_variant
@torch.inference_mode()
def test_attention_over_bfloat16_is_its_twin(kernels, monkeypatch):
    """All else being float32. That queries and weights are rounded, the distance of a path that rounds none tells."""
    monkeypatch.setenv("LITHE_KERNELS", kernels.name)
    made = fuse(decoder(head_dim=40), "fp32")
    logits = lambda dtype: made(ids(), cache=PlainCache(made.config, batch=2, capacity=ROWS, dtype=dtype), logits=ALL).scores
    whole, exact = logits(torch.bfloat16), logits(torch.float32)
    made.fast = None
    monkeypatch.setattr(PlainCache, "attend", lambda self, layer, q, k, v, *, scale, **see: twins.attention(q, k, v, scale))
    apart = lambda other: float((whole - other).abs().mean() / whole.abs().max())
    assert apart(logits(torch.float32)) <= 2e-5 < 2e-4 <= apart(exact)


@every_kind
@pytest.mark.parametrize("variant", library.variants())
def test_rows_do_not_depend_on_their_company(kind, group, dtype, variant, monkeypatch):
    """Alone, in a batch, in chunks, on several threads, beyond a chunk of the softmax: the same bits."""
    monkeypatch.setenv("LITHE_KERNELS", variant)
    long = 300 if kind in ("fp32", "bf16") else ROWS
    model, text = fuse(decoder(tied=True).to(dtype), kind, group), ids(2, long)
    monkeypatch.setenv("LITHE_THREADS", "1")
    alone = passes(model, text, [long - 20, *range(long - 19, long + 1)])
    for threads, cuts in ((1, [long]), (2, [7, 20, long]), (3, [1, 2, 5, long - 3, long])):
        monkeypatch.setenv("LITHE_THREADS", str(threads))
        assert torch.equal(passes(model, text, cuts)[:, -20:], alone[:, -20:]), (threads, cuts)
        assert torch.equal(passes(model, text[1:], cuts)[:, -20:], alone[1:, -20:]), (threads, cuts)


@every_kind
@torch.inference_mode()
def test_passes_without_a_cache_give_the_same_rows(kind, group, dtype):
    """One pass over a text, a longer text, a batch of texts and a text fed token by token."""
    model, text = fuse(decoder(**GEMMA, window=9, windowed=(True, False, True)).to(dtype), kind, group), ids(3, ROWS)
    whole = model(text, logits=ALL).scores
    assert torch.equal(whole, passes(model, text, range(1, ROWS + 1)))
    assert torch.equal(model(text[1:2, :17], logits=ALL).scores, whole[1:2, :17])


@every_kind
@torch.inference_mode()
def test_one_call_for_all_layers_is_a_call_a_layer(kind, group, dtype):
    """A long text deals its chunks out one by one where rows are few; taps cut the stack."""
    model, text = fuse(decoder().to(dtype), kind, group), ids(1, 600)
    for rows in (1, 3, 40):
        outs = []
        for taps in ((), (0, 1, 2)):
            cache = PlainCache.like(model)
            model(text[:, :-rows], cache=cache, taps=taps)
            cache.commit([600 - rows])
            outs.append(model(text[:, -rows:], cache=cache, logits=ALL, taps=taps).scores)
        assert torch.equal(*outs)
        assert torch.equal(outs[0][:, -1:], model(text, logits=ALL).scores[:, -1:])


@torch.inference_mode()
def test_masks_of_every_kind_agree_with_the_plain_path():
    plain = decoder(window=5, windowed=(True, False, True))
    made, dice = fuse(copy.deepcopy(plain), "fp32"), torch.Generator().manual_seed(3)
    docs = torch.arange(ROWS).expand(2, ROWS) // 11
    some = torch.rand(2, ROWS, ROWS, generator=dice).gt(0.5) | torch.eye(ROWS, dtype=torch.bool)
    far = torch.arange(ROWS).expand(2, ROWS) * 2 + 7
    for how in ({"mask": FULL}, {"mask": Blocks(4)}, {"mask": some}, {"mask": some[0]}, {"docs_BT": docs}, {"pos_BT": far}):
        for lengths in (None, [0, 0], [5, 5], [5, 2]):
            scores = []
            for model in (plain, made):
                cache = None if lengths is None else PlainCache.like(model, batch=2)
                if lengths and max(lengths):
                    model(ids(2, 5, seed=2), cache=cache)
                    cache.commit(lengths)
                scores.append(model(ids(), cache=cache, logits=ALL, **how).scores)
            assert (scores[0] - scores[1]).abs().max() <= 1e-5 * scores[0].abs().max(), (how, lengths)


def test_what_would_read_outside_a_buffer_is_refused():
    made = fuse(decoder(tied=True), "int8")
    for wrong in (lambda: made(ids(1, 2), pos_BT=torch.tensor([[0, -1]])), lambda: made.embed(torch.tensor([[50]])),
                  lambda: made.embed(torch.tensor([[-1]]))):  # fmt: skip
        with pytest.raises((UsageError, IndexError)):
            wrong()
    cache = PlainCache.like(made)
    made(ids(1, 3), cache=cache)
    with pytest.raises(UsageError):
        cache.commit([[0, 2, 1]])


@pytest.mark.parametrize("nodes", [7, 60])
@every_kind
@torch.inference_mode()
def test_a_branch_of_a_tree_is_a_chain(kind, group, dtype, nodes):
    model, text = fuse(decoder(window=9, windowed=(True, False, True)).to(dtype), kind, group), ids(2, 20)
    trees = [[-1, 0, 0, 1, 2, 4, 3], [-1, -1, 1, 0, 2, 4, 4]]
    for step, parents in enumerate(trees, start=2):  # many: chains that fork, and stars of stars
        parents += [i - step if i % 5 else i // step for i in range(7, nodes)]
    drafts = ids(2, nodes, seed=5)
    depth = [[0] * nodes for _ in trees]
    for b, parents in enumerate(trees):
        for i, parent in enumerate(parents):
            depth[b][i] = depth[b][parent] + 1 if parent >= 0 else 0
    cache = PlainCache.like(model, batch=2)
    model(text, cache=cache)
    cache.commit([20, 17])
    pos = torch.tensor([[n + d for d in row] for n, row in zip((20, 17), depth, strict=True)])
    out = model(drafts, pos_BT=pos, mask=Tree(trees), cache=cache, logits=ALL).scores
    for b, parents in enumerate(trees):
        for leaf in range(0, nodes, 1 + nodes // 10):
            path, node = [], leaf
            while node >= 0:
                path, node = [node, *path], parents[node]
            single = PlainCache.like(model)
            model(text[b : b + 1, : (20, 17)[b]], cache=single)
            single.commit([(20, 17)[b]])
            chain = model(drafts[b : b + 1, path], cache=single, logits=ALL).scores
            assert torch.equal(chain[0, -1], out[b, leaf]), (b, leaf)


@torch.inference_mode()
def test_layer_ranges_skips_and_taps_work_from_python():
    plain = decoder()
    made = fuse(copy.deepcopy(plain), "fp32")
    taps = (0, 2, "embed", "final")
    for how in ({"layers": [0, 2]}, {"skip": [(1, "attn"), (2, "mlp")]}, {"layers": [0, (1, 2)]},
                {"skip": [(0, "attn"), (0, "mlp")]}):  # fmt: skip
        a, b = (m(ids(), cache=PlainCache.like(m, batch=2), logits=ALL, taps=taps, **how) for m in (plain, made))
        assert (a.scores - b.scores).abs().max() <= 1e-5 * a.scores.abs().max(), how
        assert all((a.taps[name] - b.taps[name]).abs().max() <= 1e-4 for name in a.taps), how


@torch.inference_mode()
def test_a_swapped_site_unfuses_its_block_and_says_why():
    made = fuse(decoder(), "fp32")
    expected = passes(made, ids(), [ROWS])
    site = made.sites("layers.1.mlp.down_proj")[0]
    dense = torch.nn.Linear(100, 72, bias=False)
    dense.weight.data.copy_(site.module.weight)
    packed = site.swap(dense)
    assert (passes(made, ids(), [ROWS]) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert list(made.fast.why) == [1] and "Linear" in made.fast.why[1]
    site.swap(packed)
    assert torch.equal(passes(made, ids(), [ROWS]), expected) and not made.fast.why


@pytest.mark.parametrize("traits", [{"norm_in": False, "norm_out": True}, {"qk_norm": "all"}, {"activation": "gelu"},
                                    {"parallel": True}, {"gated": False}, {"mlp_bias": True}])  # fmt: skip
def test_other_families_fall_back_and_say_why(traits):
    plain = decoder(**traits)
    expected = passes(plain, ids(), [ROWS])
    made = fuse(plain, "fp32")
    assert (passes(made, ids(), [ROWS]) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert set(made.fast.why) == {0, 1, 2} and all(made.fast.why.values())


def test_one_layout_stays_and_copies_are_independent():
    traits = {"tied": True, "width": 96, "ffn": 128, "vocab": 64}
    weights = sum(p.numel() for p in decoder(**traits).parameters())
    made = fuse(decoder(**traits), "int8")
    assert sum(t.numel() * t.element_size() for t in [*made.parameters(), *made.buffers()]) < 1.1 * weights
    twin = copy.deepcopy(made)
    expected = passes(twin, ids(), [ROWS])
    made.layers[0].self_attn.q_proj.data.zero_()
    assert torch.equal(passes(twin, ids(), [ROWS]), expected)


def test_gradients_reach_what_is_trained_beside_packed_weights():
    plain = decoder()
    made = fuse(copy.deepcopy(plain), "fp32")
    embeds = torch.randn(2, 9, 72, generator=torch.Generator().manual_seed(2))
    grads = []
    for model in (plain, made):
        x = embeds.clone().requires_grad_()
        model(embeds=x, cache=PlainCache.like(model, batch=2), logits=ALL).scores.square().sum().backward()
        grads.append(x.grad)
    assert (grads[0] - grads[1]).abs().max() <= 1e-4 * grads[0].abs().max()


def test_what_cannot_be_fused_is_refused():
    with pytest.raises(UnsupportedError):
        fuse(decoder().double(), "fp32")
