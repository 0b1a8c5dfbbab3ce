"""Is a plan lossless on this model and these prompts? Axes: N rows, V vocabulary.

Greedy output is compared token by token. Where it differs, the question is whether the two tokens were a tie that rounding may
turn: the gap between plain decoding's two best logits there is held against how far logits move on this machine when the same
rows are computed one at a time and several in a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lithe.bench.measure import measure
from lithe.bench.runner import Course
from lithe.decode.generate import request
from lithe.decode.lanes import Lanes
from lithe.decode.loop import step
from lithe.decode.plan import DecodePlan, plan
from lithe.model.decoder import ALL, Decoder
from lithe.model.precision import precision
from lithe.sampling.sequence import Sequence

SPAN = 48  # rows on which noise is measured
WIDTHS = (2, 4, 8)  # rows of the passes it is measured with, besides the widest that the method ran: kernels change with them


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first token at which a prompt's output leaves plain decoding's. None for a token: that output had ended.

    prompt, position: from 0, the position among the generated tokens. margin: gap of plain's two best logits there, None where
    one output had ended. noise: how far logits moved between passes of one row and of several; each of the two may move so far,
    so a gap of twice that may turn.
    """

    prompt: int
    position: int
    plain: int | None
    method: int | None
    plain_text: str
    method_text: str
    margin: float | None
    noise: float

    @property
    def is_noise(self) -> bool:
        return self.margin is not None and self.margin <= 2 * self.noise


@dataclass(kw_only=True)
class Diagnosis:
    """What the doctor found. lossless: nothing differs by more than numeric noise; identical: nothing differs at all.

    noise: the largest logit difference measured. rows: of the widest pass it was measured with.
    """

    method: str
    promises: tuple[str, ...]
    prompts: int = 0
    same: int = 0
    tokens: int = 0
    noise: float = 0.0
    rows: int = max(WIDTHS)
    dtype: str = ""
    threads: int = 0
    kernels: str = "torch"
    differences: list[Difference] = field(default_factory=list)
    interrupted: bool = False

    @property
    def identical(self) -> bool:
        return not self.differences

    @property
    def lossless(self) -> bool:
        return all(difference.is_noise for difference in self.differences)

    def json(self) -> dict[str, Any]:
        found = [asdict(difference) | {"is_noise": difference.is_noise} for difference in self.differences]
        return asdict(self) | {"differences": found, "identical": self.identical, "lossless": self.lossless}


def diagnose(model: Decoder, method: str, prompts: Seq[str | Seq[int]], *, max_tokens: int = 128, accept: str | None = None,
             progress: Callable[[int, int], None] | None = None) -> Diagnosis:
    """Compare a method's greedy output with plain decoding's on every prompt. Raises for a plan or prompt that is not legal."""
    course = Course(model=model, prompts=list(prompts), max_tokens=max_tokens, accept=accept)
    plain, made = plan(model), plan(model, draft=method, accept=accept)
    found = Diagnosis(method=made.name, promises=made.promises, dtype=precision(model),
                      threads=model.threads, kernels=model.kernels)
    try:
        for i in range(len(prompts)):
            _examine(found, i, course, plain, made)
            if progress is not None:
                progress(i + 1, len(prompts))
    except KeyboardInterrupt:
        found.interrupted = True
    return found


def _examine(found: Diagnosis, i: int, course: Course, plain: DecodePlan, made: DecodePlan) -> None:
    """Run one prompt both ways and note where they part."""
    start = course.ask(i).ids
    truth, other = (measure(each, [course.ask(i)]) for each in (plain, made))
    theirs, ours = other.tokens[0], truth.tokens[0]
    found.rows = max(found.rows, other.widest)
    parted = _first_difference(ours, theirs)
    if parted is not None or not i:  # where nothing differs, one prompt tells how loud the noise is
        moved = noise(plain.model, start + ours[:parted], found.rows)
        found.noise = max(found.noise, moved)
    if parted is not None:
        a, b = (tokens[parted] if parted < len(tokens) else None for tokens in (ours, theirs))
        margin = None if a is None or b is None else _margin(plain, start, parted)
        found.differences.append(Difference(prompt=i, position=parted, plain=a, method=b, plain_text=_text(plain.model, a),
                                            method_text=_text(plain.model, b), margin=margin, noise=moved))
    found.same += parted is None
    found.prompts += 1
    found.tokens += len(ours)


def _first_difference(a: Seq[int], b: Seq[int]) -> int | None:
    """Where two texts part, their ends included."""
    if list(a) == list(b):
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@torch.inference_mode()
def _margin(plain: DecodePlan, start: list[int], position: int) -> float:
    """Gap of the two best logits for the token at `position`, by the very passes that plain decoding made."""
    sequence = request(plain.model, start, max_tokens=position + 1)
    while len(sequence.tokens) < position:
        step(plan=plain, sequences=[sequence])
    plain.lanes.sync([sequence])
    plain.lanes.prefill()
    logits = plain.lanes.run([[sequence.ids[-1]]]).logits
    assert logits is not None
    best = logits[0, 0].double().topk(2).values
    return float(best[0] - best[1])


@torch.inference_mode()
def noise(model: Decoder, ids: list[int], rows: int) -> float:
    """Largest logit difference on a text's last tokens between passes of one row and of several, up to `rows`."""
    alone = _logits(model, ids, 1)
    return max(float((_logits(model, ids, width) - alone).abs().max()) for width in {*WIDTHS, rows})


def _logits(model: Decoder, ids: list[int], width: int) -> Tensor:
    """Logits [rows, V] of a text's last tokens, computed `width` rows a pass behind one cached beginning."""
    lanes, span = Lanes(model), min(SPAN, len(ids))
    head = Sequence(ids[: len(ids) - span + 1], limit=1, context=len(ids) + 1)  # lanes cache all but the last token
    lanes.sync([head])
    lanes.prefill()
    found = []
    for at in range(len(ids) - span, len(ids), width):
        logits = lanes.run([ids[at : at + width]], logits=ALL).logits
        assert logits is not None
        lanes.commit([min(width, len(ids) - at)])
        found.append(logits[0])
    return torch.cat(found).double()


def _text(model: Decoder, token: int | None) -> str:
    if token is None:
        return ""
    return model.tokenizer.decode([token]) if model.tokenizer is not None else f"#{token}"
