"""A constraint and a schema's instances: what it lets through, and how long it takes. No model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from lithe.bench.json._sets import Case
from lithe.errors import LitheError
from lithe.model.tokenizer import Tokenizer
from lithe.sampling.constraint import ConstraintError, Program


@dataclass
class Verdict:
    """What came of one schema. under: invalid instances let through. over: valid ones that are not."""

    refused: str | None = None  # why, where it was
    instances: int = 0
    under: int = 0
    over: int = 0
    compile_s: float = 0.0
    masks_us: list[float] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return self.refused is None and not self.under and not self.over


def verdict(case: Case, make: Any, tokenizer: Tokenizer) -> tuple[Verdict, Program | None]:
    """make: from a schema to a program. The instances are written compactly, in the tokenizer's own tokens."""
    found, start = Verdict(), perf_counter()
    try:
        program = make(case.schema)
    except LitheError as problem:
        found.refused = str(problem)
        return found, None
    found.compile_s = perf_counter() - start
    for value, valid in case.tests:
        ids = tokenizer.encode(json.dumps(value, ensure_ascii=False, separators=(",", ":")), bos=False)
        try:
            taken = _replay(program, ids, found.masks_us if valid else None)
        except ConstraintError as problem:
            found.refused = str(problem)
            return found, None
        found.instances += 1
        found.under += taken and not valid
        found.over += valid and not taken
    return found, program


def _replay(program: Program, ids: list[int], masks_us: list[float] | None) -> bool:
    """Whether the tokens are let through; each mask on the way is timed."""
    matcher = program.start()
    for token in ids:
        if masks_us is not None:
            start = perf_counter()
            matcher.allowed()
            masks_us.append(1e6 * (perf_counter() - start))
        if not matcher.push(token):
            return False
    return matcher.whole()
