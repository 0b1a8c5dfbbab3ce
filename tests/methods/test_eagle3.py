"""EAGLE-3: fused states, tested in the lesson as they are used, guesses from the commonest tokens."""

import pytest
import torch

from lithe import registry
from lithe.contracts.small import small_model
from lithe.decode.carry import Carrier
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import FormatError
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence
from tests.methods.bigrams import bigrams, drafting, fitted, tokens_per_pass

TWO, SPEC = (2,), "eagle3:rate=0.03,steps=3,depth=3"
method = registry.find("eagle3").module


def heads(**knobs):
    made = method.Heads(method.Knobs(**knobs), small_model(layers=4)).double()
    for weight in (made.fuse.linear.weight, made.join.linear.weight):
        torch.nn.init.normal_(weight, std=0.1)  # at the start they are one of their parts alone
    return made.eval()


def batch(model, tokens=14):
    ids_BT = torch.randint(32, (1, tokens), generator=torch.Generator().manual_seed(0))
    out = model(ids_BT, taps=range(4), logits="all")
    return {"ids_BT": ids_BT, "logits": out.scores} | {f"tap:{layer}": out.taps[layer] for layer in range(4)}


def test_it_learns_what_follows_at_every_depth_and_not_without_the_next_tokens_embedding():
    folder, rates = fitted(SPEC, *TWO)
    assert min(sum(row[:2]) for row in rates) > 0.9
    made = drafting(f"eagle3:heads={folder},nodes=14,depth=3", *TWO)
    assert (whole := tokens_per_pass(made)) > 3.2
    with torch.no_grad():
        made.draft.net.join.linear.weight[:, 32:] = 0
    assert tokens_per_pass(made) < whole - 1


def test_the_lesson_is_the_use():
    """Step s of the lesson at row t is what a draft of s tokens past a text of t tokens makes, its own states being read."""
    model, made = small_model(layers=4), heads()
    known, t = batch(model), 6
    lesson = [states[0, t] for states in made.rollout(known, 4)]
    draft = Carrier(method.Knobs(), made, model.device, *made.taps)
    ids = known["ids_BT"][0].tolist()
    sequence = Sequence(ids[: t + 2], limit=9, context=64)
    taps = {layer: known[f"tap:{layer}"] for layer in made.taps}
    draft.follower.read([sequence], [0], [t + 1], taps)
    _, states_BC = draft.follower.follow([sequence], [9])
    tree = Tree.chain(ids[t + 1], ids[t + 2 : t + 5])
    sprout = draft._sprout([tree], states_BC)
    for step in range(4):
        assert torch.allclose(sprout([(0, step)])[0], lesson[step], atol=1e-9), step


def test_a_roll_that_sees_guessed_states_everywhere_is_another(monkeypatch):
    """The ablation of the mask: were later steps to see all that the step before made, the lesson would not be the use."""
    made, known = heads(), batch(small_model(layers=4))
    right = [states.detach() for states in made.rollout(known, 3)]
    monkeypatch.setattr(torch, "eye", lambda n, **kind: torch.ones(n, n, **kind).tril())
    wrong = list(made.rollout(known, 3))
    assert torch.equal(right[0], wrong[0]) and not torch.allclose(right[2], wrong[2], atol=1e-3)


def test_low_middle_and_high_states_are_fused_and_each_counts():
    made, known = heads(), batch(small_model(layers=4))
    assert made.taps == (3, 2, 0) and method.tapped(32) == (29, 16, 2) and method.tapped(1) == (0, 0, 0)
    before = next(made.rollout(known, 1)).detach()
    for layer in made.taps:
        other = known | {f"tap:{layer}": known[f"tap:{layer}"] + 1}
        assert not torch.allclose(next(made.rollout(other, 1)), before, atol=1e-4)
    assert heads(fused=False).signals == ("tap:3", "logits")


def test_guesses_come_from_the_commonest_tokens_alone(tmp_path):
    made = heads(vocab=4)
    made.prepare(torch.tensor([9, 9, 9, 30, 30, 5, 5, 5, 5, 17, 17, 2]))
    assert made.tokens.tolist() == [5, 9, 17, 30]
    logits = made.logits(torch.randn(2, 32, dtype=torch.float64))
    assert logits.shape == (2, 32) and logits.isfinite().sum(1).tolist() == [4, 4]
    assert logits[:, [5, 9, 17, 30]].isfinite().all()
    assert made.loss(batch(small_model(layers=4)))[0].isfinite()
    folder, _ = fitted("eagle3:rate=0.03,steps=2,depth=2,vocab=16", 1, steps=20)
    text = plan(bigrams(1), draft=f"eagle3:heads={folder}")
    sequences = [Sequence([i], limit=20, context=96) for i in range(4)]
    steps = list(run(text, sequences))
    drafted = {token for step in steps for token, source in zip(step.tokens, step.sources, strict=True) if source}
    assert drafted and drafted <= set(text.draft.net.tokens.tolist()) and len(text.draft.net.tokens) == 16


def test_a_folder_with_tokens_that_are_none_is_refused(tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder, _ = fitted("eagle3:rate=0.03,steps=2,depth=2,vocab=16", 1, steps=20)
    for broken in (99, -1):
        bad = shutil.copytree(folder, tmp_path / str(broken))
        tensors = load_file(bad / "fitted.safetensors")
        tensors["tokens"][0] = broken
        save_file(tensors, bad / "fitted.safetensors")
        with pytest.raises(FormatError, match="tokens that this target does not have"):
            drafting(f"eagle3:heads={bad}", 1)
