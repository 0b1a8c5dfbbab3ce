"""Structured layers (row 168): products with blocks, their nearest fits, self-guided training, and what is stored."""

import json
import math

import pytest
import torch

from lithe.compress import api
from lithe.compress.calibrate import of_ids
from lithe.compress.factorize.structured_ffn import dense, shuffled
from lithe.compress.fitness import nll
from lithe.compress.mixture import parse
from lithe.compress.recover.structured_ffn import Guided, share_at
from lithe.compress.recovery import recover
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model
from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model import checkpoint
from lithe.model.blocks import Blocks, Structured, merge_where_faster, of_pair, product
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.export import plain
from lithe.model.fast import fuse
from lithe.model.linear import Factored

FORMS = {"low_rank": "rank=8", "block_dense": "rank=8,blocks=2", "block_shuffle": "levels=2,ratio=0.25"}


def asked(form, more="sites=mlp.*"):
    return f"factorize=structured_ffn:form={form},{FORMS[form]},{more}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(48, 32), (32, 64)])
def test_fits_find_what_is_there_and_what_is_nearest(form, shape):
    dice = torch.Generator().manual_seed(1)
    draw = lambda *size: torch.randn(*size, generator=dice, dtype=torch.float64)
    n, k = shape
    made = {"low_rank": (draw(8, k), draw(n, 8)), "block_dense": (draw(2, 4, k // 2), draw(n, 8)),
            "block_shuffle": (draw(2, 16, k // 2), draw(2, n // 2, 16))}[form]
    fit = (lambda w: shuffled(w, 2)) if form == "block_shuffle" else (lambda w: dense(w, 8, 1 if form == "low_rank" else 2))
    weight = product(*made)
    a, b = fit(weight)
    assert (a.shape, b.shape) == (made[0].shape, made[1].shape) and torch.allclose(product(a, b), weight, atol=1e-9)
    other = draw(n, k)  # no product: then no small move of the factors comes nearer
    a, b = fit(other)
    best = (product(a, b) - other).square().sum()
    for _ in range(10):
        near = product(a + 1e-3 * draw(*a.shape), b + 1e-3 * draw(*b.shape))
        assert (near - other).square().sum() > best


def test_a_layer_of_blocks_is_its_matrix():
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    for counts, sizes in (((2, 1), (8, 48)), ((1, 4), (8, 48)), ((4, 4), (16, 48))):
        layer = Structured(32, sizes[1], sizes[0], counts, bias=True).double()
        assert torch.allclose(layer(x), x @ layer.weight.mT + layer.bias, atol=1e-12)
    single = Blocks(32, 48, 4, strided=False)
    assert single.weight.numel() == 32 * 48 // 4
    with pytest.raises(FormatError, match="do not divide"):
        Blocks(32, 48, 5, strided=False)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_stored_is_small_loads_bit_for_bit_and_equals_its_product(form, tmp_path):
    model = copied(small_model()).float()
    found = api.compress(model, [asked(form)], calibration=text(), out=tmp_path / "m")
    pairs = [module for module in found.model.modules() if isinstance(module, Factored)]
    assert len(pairs) == 6 and all(type(pair) is (Factored if form == "low_rank" else Structured) for pair in pairs)
    values = sum(pair.a.weight.numel() + pair.b.weight.numel() for pair in pairs)
    assert 4 * values == found.allocations[0].cost

    rest = sum(w.numel() for name, w in found.model.named_parameters() if ".mlp." not in name)
    assert 0 <= found.report["bytes"] - 4 * (values + rest) < 6000  # the header
    again = checkpoint.load(tmp_path / "m")
    assert torch.equal(logits(again), logits(compress(model, [asked(form)], text()).model))
    stock, notes = plain(again)
    assert (logits(stock) - logits(again)).abs().max() <= 1e-5 and "products" in notes[0]


def test_blocks_that_cannot_be_are_told(tmp_path):
    compressed = compress(copied(small_model()).float(), [asked("block_dense")], text()).model
    checkpoint.save(compressed, tmp_path / "m")
    own = json.loads((tmp_path / "m" / "lithe.json").read_text())
    for name, count, told in (("layers.0.mlp.up_proj.c", 2, "no product"), ("layers.0.self_attn.q_proj.a", 2, "no product"),
                              ("layers.0.mlp.up_proj.a", 3, "do not divide"), ("layers.0.mlp.up_proj.a", 0, "cannot be")):
        changed = own | {"config": own["config"] | {"blocks": [[name, count]]}}
        (tmp_path / "m" / "lithe.json").write_text(json.dumps(changed))
        with pytest.raises(FormatError, match=told):
            checkpoint.load(tmp_path / "m")
    for step, told in (("form=block_dense,blocks=5,ratio=0.5", "do not divide"), ("form=block_dense,rank=7", "no multiple"),
                       ("form=block_shuffle,rank=4", "not a rank")):
        with pytest.raises((UsageError, UnsupportedError), match=told):
            compress(small_model(), [f"factorize=structured_ffn:{step}"], text())


def test_the_matrix_fades_by_a_cosine_and_saves_passes_where_asked():
    assert [share_at(s, 10) for s in (0, 5, 10, 15)] == pytest.approx([1, 0.5, 0, 0]) and share_at(0, 0) == 0
    base = of_pair(torch.randn(4, 32), torch.randn(48, 4), torch.randn(48))
    guided, x = Guided(base), torch.randn(5, 32)
    for share in (0.0, 0.3, 1.0):
        guided.share = share
        assert torch.allclose(guided(x), base(x), atol=1e-5)  # it begins as the product
    asks = {}
    for saving in (False, True):
        model = compress(small_model(), [asked("low_rank")], text()).model
        step = parse(f"recover=structured_ffn:steps=40,rate=1e-3,saving={saving}")
        work, note = recover(model, small_model(), step, text(), seed=0, kept=None, number=0)
        asks[saving] = note["guided"]
        assert not any(isinstance(module, Guided) for module in work.modules())
    expected = sum(share_at(s, 20) for s in range(40)) / 40
    assert asks[False] == 0.5 and abs(asks[True] - expected) < 3 * math.sqrt(expected / (40 * 6))


@pytest.mark.parametrize("form", FORMS)
def test_healing_helps_and_touches_the_products_alone(form):
    dense_model = small_model()
    begun = compress(dense_model, [asked(form)], text()).model
    step = "recover=structured_ffn:steps=60,rate=3e-3,train=products"
    healed = compress(dense_model, [asked(form), step], text()).model
    assert nll(healed, text()) < nll(begun, text())
    for name, weight in begun.named_parameters():
        assert torch.equal(weight, healed.get_parameter(name)) == (".mlp." not in name), name


def test_starts_differ_as_they_say():
    model, spectra = small_model(), {}
    for start in ("weights", "fresh", "random"):
        layer = compress(model, [asked("low_rank", f"sites=mlp.*,start={start}")], text()).model.layers[0].mlp.up_proj
        spectra[start] = torch.linalg.svdvals(layer.weight)[:8]
    whole = torch.linalg.svdvals(model.layers[0].mlp.up_proj.weight)[:8]
    assert torch.allclose(spectra["weights"], whole) and spectra["fresh"].max() / spectra["fresh"].min() < 2
    assert spectra["random"].max() / spectra["random"].min() > 2  # a product of normal draws spreads its values
    for form in ("block_dense", "block_shuffle"):
        layer = compress(model, [asked(form, "sites=mlp.*,start=fresh")], text()).model.layers[0].mlp.up_proj
        first = torch.linalg.svdvals(layer.a.weight)
        assert torch.allclose(first, first.flatten()[0].expand_as(first))  # orthogonal blocks, one scale
        rms = [float(w.detach().square().mean().sqrt()) for w in (layer.weight, model.layers[0].mlp.up_proj.weight)]
        assert rms[0] == pytest.approx(rms[1], rel=0.05)  # of what was drawn like the weights


@pytest.mark.parametrize("form", FORMS)
def test_merging_for_decoding_computes_the_same(form):
    found = compress(copied(small_model()).float(), [asked(form)], text()).model
    before = logits(found)
    fuse(found, "fp32")
    apart = logits(found)
    merged = merge_where_faster(found, "fp32")
    assert (logits(found) - before).abs().max() <= 1e-5 and (apart - before).abs().max() <= 1e-5
    assert merged == (not any(isinstance(module, Factored) for module in found.modules())) == (not found.config.ranks)


@pytest.mark.slow
def test_the_ladder_from_scratch():
    """300 steps on a made language: nats a token of each start; the log tells the figures on real text."""
    dice = torch.Generator().manual_seed(0)
    table = torch.randn(64, 64, generator=dice).mul(2).softmax(-1)
    ids = [0]
    for _ in range(20_000):
        ids.append(int(torch.multinomial(table[ids[-1]], 1, generator=dice)))
    calibration = of_ids(ids, length=64, rows_each=16)
    model = Decoder(Config(vocab=64, width=64, layers=2, heads=4, kv_heads=4, ffn=176, context=64)).init(0)
    train = lambda guided: f"recover=structured_ffn:steps=300,rate=3e-3,guided={guided}"
    start = lambda how: f"factorize=structured_ffn:ratio=0.68,sites=mlp.*,start={how}"
    lost = {name: nll(compress(model, steps, calibration).model, calibration) for name, steps in {
        "guided": [start("fresh"), train(0.5)], "spectral": [start("fresh"), train(0)]}.items()}
    assert lost["guided"] < lost["spectral"] + 0.02
