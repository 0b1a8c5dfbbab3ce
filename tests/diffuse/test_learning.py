"""Learned parts and trained models, on small random ones: masks, traces and labels are what the papers say."""

from dataclasses import replace

import pytest
import torch

from lithe import registry
from lithe.contracts.diffuse import PROMPTS, small_model, texts
from lithe.contracts.distill import class_of
from lithe.diffuse.learn import Example, Lesson, learn, logits
from lithe.diffuse.oracle import Foreseen, again, fill_with, foreseen
from lithe.diffuse.plan import plan
from lithe.errors import UnsupportedError
from lithe.sampling.sequence import Sequence

FULL_MODEL = ("full", 0)


def method(spec, model=None):
    parsed = registry.parse(spec)
    return parsed.entry.module.Method(parsed.knobs, model or small_model(*FULL_MODEL))


def begun(spec, **lesson):
    model = small_model(*FULL_MODEL)
    made = method(spec, model)
    made.begin(class_of(model, **lesson), small_model.__wrapped__(*FULL_MODEL))
    return made


def requests(count=3, limit=8):
    return [Sequence(p, limit=limit, context=64) for p in PROMPTS[:count]]


def test_the_oracle_keeps_the_text_where_it_never_has_to_guess():
    model, stuck = small_model(*FULL_MODEL), 0
    finals = foreseen(model, requests())
    for final, request in zip(finals, requests(), strict=True):
        seen = []
        runs = fill_with(model, [request], [Foreseen(final, lambda *step, seen=seen: seen.append(step[3].any()))])
        stuck += not all(seen)
        if all(seen):
            assert torch.equal(runs[0].canvas.ids_T, final)
        assert runs[0].spent.passes <= request.limit
    assert stuck < 3  # else nothing was tested
    assert [again(r).ids for r in requests()] == [list(p) for p in PROMPTS]


def test_a_teachers_masks_are_some_of_the_students():
    nested, apart = begun("dscd"), begun("dscd:nested=false")
    escaped = 0
    for step in range(200):
        batch = nested.batch(step)
        mask = nested.room.mask
        assert not ((batch["teacher_BT"] == mask) & (batch["ids_BT"] != mask)).any()
        assert ((batch["ids_BT"] == mask).sum(1) == 2).all() and ((batch["teacher_BT"] == mask).sum(1) == 1).all()  # 6 places
        other = apart.batch(step)
        escaped += int(((other["teacher_BT"] == mask) & (other["ids_BT"] != mask)).any())
    assert escaped > 50  # the control: drawn apart they escape
    long = nested.counts(torch.tensor([100] * 500), torch.Generator().manual_seed(0))
    assert (long[1] <= long[0]).all() and int(long[0].min()) >= 40 and long[0].max() <= 90 and long[1].max() <= 60
    assert nested.batch(0)["weight"] == pytest.approx(0.9) and nested.batch(8)["weight"] == pytest.approx(0.5)


def test_certainty_is_asked_for_in_two_views_that_add_up():
    made = begun("dparallel:block=3")
    for step in range(20):
        batch = made.batch(step)
        rows = len(batch["ids_BT"]) // 2
        first, second = batch["asked_BT"][:rows], batch["asked_BT"][rows:]
        assert not (first & second).any() and ((first | second).sum(1) == 3).all()
        hidden = batch["ids_BT"] == made.room.mask
        assert (hidden | ~batch["asked_BT"]).all()
        last = (first | second).float().argmax(1)  # what lies behind the block is hidden, what lies before is not
        for row, start in enumerate(last.tolist()):
            assert hidden[row, start + 3 :].all() and not hidden[row, :start].any()


def test_certainty_is_asked_for_only_where_the_model_is_right():
    only, everywhere = begun("dparallel:beta=5"), begun("dparallel:beta=5,correct=false")
    model = small_model(*FULL_MODEL, seed=3)  # another model, which is wrong at times
    batch = only.batch(0)
    found = [float(made.loss(model, batch)[0].detach()) for made in (begun("dparallel:beta=0"), only, everywhere)]
    assert found[0] < found[1] and found[1] != found[2]


def test_the_masked_share_is_one_for_all_rows_or_drawn_for_each():
    """The standard deviation over rows of the share that the first view masks, of 40 places each."""
    apart = {}
    for spec in ("dparallel:masked=0.4,block=64", "dparallel:masked=0.4,spread=true,block=64"):
        model = small_model(*FULL_MODEL)
        made, room = method(spec, model), class_of(model, rows=200)
        made.room, made.kept = room, [(replace(room.examples[0], places=40), [(1,) * 39])]
        share_B = made.batch(0)["asked_BT"][:200].float()[:, 3:].mean(1)
        apart[spec] = float(share_B.std())
        assert abs(float(share_B.mean()) - (0.7 if "spread" in spec else 0.4)) < 0.04
    assert list(apart.values()) == [pytest.approx((0.24 / 40) ** 0.5, abs=0.015), pytest.approx(0.185, abs=0.03)]


def free(model):
    """A class in which any answer is right."""
    room = class_of(model, rows=6)
    return replace(room, examples=[replace(e, right=lambda said: True) for e in room.examples])


def test_of_several_right_answers_the_one_likeliest_at_once_is_taught():
    model, student = small_model(*FULL_MODEL), small_model.__wrapped__(*FULL_MODEL, seed=5)
    room, made = free(model), method("dparallel:choices=6", model)
    made.begin(room, student)
    assert len({len(each) for _, each in made.kept}) > 1 or len(made.kept[0][1]) > 1
    ids_BT, open_BT = made.likeliest(made.kept)
    firsts = 0
    for (example, each), ids_T, open_T in zip(made.kept, ids_BT, open_BT, strict=True):
        empty_1T = torch.tensor([[*example.prompt, *[room.mask] * 6]])
        log_TV = logits(student, empty_1T, empty_1T)[0].log_softmax(-1)
        whole = [[*example.prompt, *said, *[room.end] * (6 - len(said))] for said in each]
        chance = [float(sum(log_TV[i, row[i]].detach() for i in range(3, 9))) for row in whole]
        assert ids_T.tolist() == whole[chance.index(max(chance))] and open_T.tolist() == [False] * 3 + [True] * 6
        firsts += chance.index(max(chance)) == 0
    assert firsts < len(made.kept)  # what one token a step says is not always it
    made.kept = [(e, each[:1]) for e, each in made.kept]
    own = room.whole([e for e, _ in made.kept], [said for _, [said] in made.kept])
    assert all(torch.equal(a, b) for a, b in zip(made.likeliest(made.kept), own, strict=True))


def test_wrong_answers_are_taught_by_no_choice():
    one, several = begun("dparallel"), begun("dparallel:choices=4")
    assert [(e, each) for e, each in one.kept] == [(e, [tuple(e.answer)]) for e in one.room.examples]
    assert all(set(each) == {tuple(e.answer)} for e, each in several.kept)


def test_answers_that_are_drawn_follow_the_chances_of_their_places():
    model = small_model(*FULL_MODEL, sharp=2.0)
    room = free(model)
    asked = [replace(room.examples[0], places=1)] * 2000
    cold, drawn = room.answers(asked, 1e-4, 1), room.answers(asked, 1.0, 1)
    assert cold == room.answers(asked) and drawn == room.answers(asked, 1.0, 1) != room.answers(asked, 1.0, 2)
    empty_1T = torch.tensor([[*asked[0].prompt, room.mask]])
    chance_V = logits(model, empty_1T, empty_1T)[0, -1].softmax(-1)
    counted_V = torch.bincount(torch.tensor([said[0] if said else room.end for said in drawn]), minlength=len(chance_V))
    assert torch.allclose(counted_V / 2000, chance_V.float(), atol=0.05)


def test_canvases_filled_as_rows_of_one_tensor_say_what_the_loop_says():
    model = small_model(*FULL_MODEL)
    room = class_of(model)
    room.examples = [*room.examples, *(Example(e.prompt[:2], e.answer, e.right, 5) for e in room.examples)]
    said = [room.said(e, run.canvas.ids_T) for e, run in zip(room.examples, room.filled(room.examples), strict=True)]
    assert room.answers(room.examples) == said and len({tuple(each) for each in said}) > 2


@pytest.mark.parametrize("policy", ["", "eoser:ascending=true", "confident:floor=0.3"])
def test_a_trace_replays_to_the_chances_it_was_decided_with(policy):
    made = begun(f"cj_grpo:policy={policy},group=3,prompts=2" if policy else "cj_grpo:group=3,prompts=2")
    made.student.model.eval()
    batch = made.batch(0)
    module = registry.parse("cj_grpo").entry.module
    now = module.taken(made.student.model, batch)
    assert torch.allclose(now, batch["was_BT"][batch["decided_BT"]].to(now.dtype), atol=1e-5)
    assert int(batch["decided_BT"].sum()) == 6 * 6  # every place of six canvases, once
    one_pass = begun("cj_grpo:group=3,prompts=2,trace=false")
    control = one_pass.batch(0)
    assert len(control["ids_BT"]) == 6
    scored = module.taken(one_pass.student.model, control)
    assert not torch.allclose(scored, control["was_BT"][control["decided_BT"]].to(scored.dtype), atol=1e-3)


def trained(module):
    """The loss an open place after a few steps."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    for step in range(250):
        optimizer.zero_grad()
        module.loss(module.batch(step))[0].backward()
        optimizer.step()
    with torch.no_grad():
        summed, counted = module.loss(module.batch(100))
    return float(summed / counted)


def test_a_filter_learns_what_the_oracle_saw():
    model = small_model(*FULL_MODEL)
    room = class_of(model, rows=16)
    examples = [Example(e.prompt, e.answer, e.right, 6) for e in room.examples]
    spec = registry.parse("learn2pd:size=6,rate=0.05")
    build = spec.entry.module.Method.build
    module = build(spec.knobs, model)
    module.prepare(room)
    assert (module.sure[~module.open] == 1).all() and not module.final[~module.open].any()
    share = float(module.final[module.open].float().mean())
    assert 0 < share < 1
    module.final = module.open & (module.sure > module.sure[module.open].median())  # a rule that can be learned
    control = build(registry.parse("learn2pd:size=6").knobs, model)
    control.__dict__ |= {name: module.__dict__[name] for name in ("rows", "seed", "sure", "open")}
    control.final = module.final[torch.randperm(len(module.final), generator=torch.Generator().manual_seed(0))] & module.open
    assert trained(module) < 0.7 * trained(control)
    with pytest.raises(UnsupportedError, match="raise size"):
        build(registry.parse("learn2pd:size=4").knobs, model).prepare(room)
    with pytest.raises(UnsupportedError, match="left to right"):
        learn(registry.parse("eagle"), model, examples, Lesson(steps=1))


def test_a_filter_refuses_a_block_wider_than_it_reads():
    made = plan(small_model(*FULL_MODEL), "learn2pd:size=4,heads=fresh")
    with pytest.raises(UnsupportedError, match="blocks of 4"):
        texts(made)
    texts(plan(small_model(*FULL_MODEL), "learn2pd:size=4,heads=fresh + equal_blocks:size=4"))
