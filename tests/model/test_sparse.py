"""Sparse parts: the same as a masked dense weight, step by step, on any base; and entries that move with all that is theirs."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lithe.contracts.adapter import IDS_BT, fresh, logits, loss, same, stir, weights
from lithe.errors import FormatError, UnsupportedError
from lithe.kernels import library
from lithe.model.decoder import ALL
from lithe.model.fast import fuse
from lithe.model.sparse import Sparse
from lithe.ops import entries
from lithe.train.entries import EntryAdamW, EntrySM3, moved
from lithe.tune.rack import Adapter, Rack
from lithe.tune.targets import linears

torch.set_num_threads(1)
WHOLE = "adapter_model.safetensors"
SHAPE = (12, 20)


def places(share, shape=SHAPE, seed=0):
    count = round(share * shape[0] * shape[1])
    return torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(seed))[:count].sort().values.int()


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def adapter(rack, share=0.05, name="a", seed=0):
    """Zero values at random places of every linear layer."""
    parts = {site: Sparse(at := places(share, (layer.out_features, layer.in_features), seed),
                          torch.zeros(len(at), dtype=torch.float64 if rack.model.dtype == torch.float64 else torch.float32),
                          (layer.out_features, layer.in_features)) for site, layer in linears(rack.model).items()}
    return rack.add(Adapter(name, parts, {"method": "none", "knobs": {}, "seed": seed}))


@pytest.mark.parametrize("share", [0, 0.004, 0.1, 0.5, 1])
def test_products_are_the_dense_ones(share):
    idx, x, y = places(share), drawn(7, 20), drawn(7, 12, seed=2)
    values = drawn(len(idx), seed=3)
    dense = torch.zeros(240, dtype=torch.float64).index_put((idx.long(),), values).view(SHAPE)
    assert torch.allclose(entries.times(x, idx, values, SHAPE), x @ dense.T, atol=1e-12)
    assert torch.allclose(entries.times_back(y, idx, values, SHAPE), y @ dense, atol=1e-12)
    assert torch.allclose(entries.gathered(y, x, idx, SHAPE), (y.T @ x).flatten()[idx.long()], atol=1e-12)


def test_the_gradient_of_many_entries_is_taken_piece_by_piece():
    shape = (700, 600)  # more than one piece
    idx, x, y = places(0.3, shape), drawn(3, 600), drawn(3, 700, seed=2)
    assert not entries.sparse(idx, shape)
    assert torch.allclose(entries.gathered(y, x, idx, shape), (y.T @ x).flatten()[idx.long()], atol=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.4, 1])
def test_gradients_are_the_slopes_also_while_watched(share):
    part, x = Sparse(places(share), drawn(len(places(share))), SHAPE), drawn(2, 3, 20).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, values: part.product(x), (x, part.values))
    plain = torch.autograd.grad(part.product(x).square().sum(), part.values)[0]
    seen = []
    part.watch = seen.append
    y = part.product(x)
    watched = torch.autograd.grad(y.square().sum(), part.values)[0]
    assert torch.allclose(watched, plain, atol=1e-10) and torch.allclose(
        seen[0], (2 * y).flatten(0, 1).T @ x.flatten(0, 1), atol=1e-10)


def test_step_by_step_it_is_a_masked_dense_weight():
    """The oracle trains the weights themselves under a mask, by torch's AdamW."""
    model, oracle = fresh(), fresh()
    rack = Rack.of(model)
    a = adapter(rack)
    rack.train("a")
    dense = {site: layer.weight for site, layer in linears(oracle).items()}
    masks = {site: torch.zeros_like(w).view(-1).index_fill(0, a.parts[site].idx.long(), 1.0).view_as(w)
             for site, w in dense.items()}
    ours = EntryAdamW(list(a.parameters()), lr=1e-2)
    theirs = torch.optim.AdamW(list(dense.values()), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(10):
        one, other = loss(model), loss(oracle)
        assert abs(one - other) < 1e-12
        one.backward()
        other.backward()
        for site, weight in dense.items():
            weight.grad *= masks[site]
        ours.step()
        theirs.step()
        ours.zero_grad()
        oracle.zero_grad()
        assert (logits(model) - logits(oracle)).abs().max() < 1e-9
    assert (logits(model) - logits(fresh())).abs().max() > 1e-2


def test_merging_changes_its_entries_only_and_is_taken_back():
    model = fresh()
    plain, rack = weights(model), Rack.of(model)
    a = adapter(rack)
    stir(a, 1)
    beside = logits(model)
    rack.merge("a")
    assert (logits(model) - beside).abs().max() < 1e-9
    for site, weight in weights(model).items():
        part = a.parts.get(site.removesuffix(".weight"))
        changed = (weight != plain[site]).flatten().nonzero().flatten()
        assert torch.equal(changed, part.idx.long() if part else changed[:0])
    rack.unmerge()
    assert torch.equal(logits(model), beside)
    rack.remove("a")
    assert same(weights(model), plain)


def test_folders_hold_it_and_lies_are_told(tmp_path):
    model = fresh()
    rack = Rack.of(model)
    stir(adapter(rack), 1)
    before = logits(model)
    rack.save("a", tmp_path / "a")
    config = json.loads((tmp_path / "a/lithe_adapter.json").read_text())
    site = next(iter(config["parts"]))
    rack.remove("a")
    rack.load(tmp_path / "a")
    assert torch.equal(logits(model), before)
    right = load_file(tmp_path / "a" / WHOLE)
    at, lies = f"{site}/idx", {}
    lies["ascend"] = right | {at: right[at].flip(0)}
    lies["end before"] = right | {at: right[at] + 10**6}
    lies["places for"] = right | {at: right[at][1:].clone()}
    lies["32-bit"] = right | {at: right[at].long()}
    lies["must have idx"] = {name: tensor for name, tensor in right.items() if name != at}
    for said, tensors in lies.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a" / WHOLE)
        with pytest.raises(FormatError, match=said):
            rack.load(tmp_path / "a", name="b")
    save_file(right, tmp_path / "a" / WHOLE)
    config["parts"][site]["settings"]["shape"] = [-1, 3]
    (tmp_path / "a/lithe_adapter.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="whole numbers"):
        rack.load(tmp_path / "a", name="b")


def test_requests_have_their_own():
    model = fresh()
    rack = Rack.of(model)
    plain = logits(model)
    for name, seed in (("a", 1), ("b", 2)):
        stir(adapter(rack, name=name, seed=seed), seed)
    numbers = [rack.number("a"), -1, rack.number({"b": 0.5}), rack.number({"a": 1.0, "b": 1.0})]
    alone = torch.cat([model(IDS_BT[i : i + 1], adapters_B=[n], logits=ALL).scores for i, n in enumerate(numbers)])
    mixed = model(IDS_BT, adapters_B=numbers, logits=ALL).scores
    assert (mixed - alone).abs().max() < 1e-9 and (mixed[1] - plain[1]).abs().max() < 1e-12
    assert all((mixed[i] - plain[i]).abs().max() > 1e-3 for i in (0, 2, 3))


@pytest.mark.skipif(library.load() is None, reason="no compiler here")
def test_it_trains_beside_packed_weights(tmp_path):
    model = fuse(fresh().float(), "int8")
    data = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rack = Rack.of(model)
    a = adapter(rack, 0.1)
    rack.train("a")
    optimizer, losses = EntryAdamW(list(a.parameters()), lr=1e-2), []
    for _ in range(8):
        found = F.cross_entropy(model(IDS_BT[:, :-1], logits=ALL).scores.flatten(0, 1), IDS_BT[:, 1:].flatten())
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.item())
    assert losses[-1] < losses[0] - 0.05
    before = logits(model)
    with pytest.raises(UnsupportedError, match="int8"):
        rack.merge("a")
    rack.save("a", tmp_path / "a")
    rack.remove("a")
    assert all(torch.equal(buffer, data[name]) for name, buffer in model.named_buffers())
    rack.load(tmp_path / "a")
    assert torch.equal(logits(model), before)


def run(steps, moves, kind=EntryAdamW, seeds=None):
    """Values by place after steps whose gradients depend on step and place alone; `moves`: the places held from a step on."""
    part = Sparse(torch.tensor([1, 5, 9]), torch.zeros(3, dtype=torch.float64), (4, 5))
    optimizer = kind([part if kind is EntrySM3 else part.values], lr=0.1)
    for step in range(steps):
        if step in moves:
            moved([optimizer], part.values, part.move(torch.tensor(moves[step])), seeds)
        part.values.grad = torch.cos(part.idx.double() * (step + 1))
        optimizer.step()
    return dict(zip(part.idx.tolist(), part.values.tolist(), strict=True)), optimizer.state[part.values]


def test_state_follows_entries_that_move():
    still, _ = run(6, {})
    there, state = run(6, {3: [0, 5, 9, 11]})
    assert there.keys() == {0, 5, 9, 11} and all(there[i] == still[i] for i in (5, 9))
    assert state["age"].tolist() == [3, 6, 6, 3]
    late = {i: 0.0 for i in (0, 11)}  # a new entry's steps are those of a fresh Adam
    for i in late:
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        plain = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
        for step in range(3, 6):
            weight.grad = torch.cos(torch.tensor([i * (step + 1.0)], dtype=torch.float64))
            plain.step()
        assert abs(weight.item() - there[i]) < 1e-12


def test_new_entries_may_begin_with_moments():
    seeds = {"exp_avg": torch.tensor([0.5, 0.7]), "exp_avg_sq": torch.tensor([0.3, 0.2]), "age": torch.tensor([4.0, 4.0])}
    _, state = run(4, {3: [0, 5, 9, 11]}, seeds=seeds)
    assert state["age"].tolist() == [5, 4, 4, 5]
    assert state["exp_avg"][0].item() == pytest.approx(0.9 * 0.5 + 0.1 * 1.0)


def test_covers_bound_every_moment_and_are_all_the_state():
    values, state = run(5, {2: [1, 6, 9]}, kind=EntrySM3)
    assert {name: tuple(cover.shape) for name, cover in state.items()} == {"rows": (4, 1), "columns": (1, 5)}
    total = sum(torch.cos(torch.tensor(9.0 * (step + 1), dtype=torch.float64)).item() ** 2 for step in range(5))
    assert min(state["rows"][1].item(), state["columns"][0, 4].item()) >= total - 1e-9 and all(values.values())


def test_a_weight_too_large_is_refused():
    with pytest.raises(UnsupportedError, match="32 bits"):
        Sparse(torch.zeros(0), torch.zeros(0), (1 << 16, 1 << 16))
