"""From outcomes to figures, a row a set of schemas and one for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lithe.bench.json import SUITE
from lithe.bench.json._suite import Outcome, Written
from lithe.bench.ledger import Record
from lithe.bench.provenance import record
from lithe.model.decoder import Decoder

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Counts of schemas unless said otherwise.

    declared: compiled. exact: compiled, and every instance judged rightly. wrongly_accepted: compiled, and an invalid instance
    let through; overly_strict: compiled, and a valid one not. raw_*: the same of the library as it comes. empirical: with
    texts, all whole ones valid. cut: texts that reached the limit; gave_up: under which the library did. us, ms: [median,
    99th percentile, largest]. skipped: share of passes that forced tokens save. same: schemas whose texts are the same without
    forcing.
    """

    set: str
    schemas: int
    declared: int
    exact: int
    wrongly_accepted: int
    overly_strict: int
    raw_declared: int
    raw_exact: int
    raw_wrongly_accepted: int
    raw_overly_strict: int
    instances: int
    written: int
    empirical: int
    texts: int
    valid: int
    cut: int
    gave_up: int
    unjudged: int
    free_valid: int
    compile_ms: tuple[float, ...]
    mask_us: tuple[float, ...]
    skipped: float | None
    same: int
    per_token_ms: dict[str, float]

    @property
    def invalid(self) -> int:
        return self.texts - self.valid - self.cut - self.gave_up - self.unjudged


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row a set, in the order they came, then one for all of them."""
    sets = dict.fromkeys(outcome.case.set for outcome in outcomes)
    found = [_row(name, [outcome for outcome in outcomes if outcome.case.set == name]) for name in sets]
    return found if len(found) == 1 else [*found, _row(ALL, outcomes)]


def _row(name: str, outcomes: Sequence[Outcome]) -> Row:
    ours, raw = [o.ours for o in outcomes], [o.raw for o in outcomes]
    told = [o.written for o in outcomes if o.written]
    forced, plain, free = ([each[way] for each in told] for way in ("forced", "unforced", "free"))
    both = [*forced, *plain]
    passes = sum(each.passes for each in plain)
    return Row(
        set=name, schemas=len(outcomes), declared=_count(v.refused is None for v in ours), exact=_count(v.exact for v in ours),
        wrongly_accepted=_count(v.under for v in ours), overly_strict=_count(v.over for v in ours),
        raw_declared=_count(v.refused is None for v in raw), raw_exact=_count(v.exact for v in raw),
        raw_wrongly_accepted=_count(v.under for v in raw), raw_overly_strict=_count(v.over for v in raw),
        instances=sum(v.instances for v in ours), written=len(told), empirical=_count(_fine(each["forced"]) for each in told),
        texts=sum(w.texts for w in both), valid=sum(w.valid for w in both), cut=sum(w.cut for w in both),
        gave_up=sum(w.gave_up for w in both), unjudged=sum(w.unjudged for w in both), free_valid=sum(w.valid for w in free),
        compile_ms=spread([1e3 * v.compile_s for v in ours if v.refused is None]),
        mask_us=spread([us for v in ours for us in v.masks_us]),
        skipped=1 - sum(each.passes for each in forced) / passes if passes else None,
        same=_count(a.ids == b.ids for a, b in zip(forced, plain, strict=True)),
        per_token_ms={way: 1e3 * sum(w.seconds for w in which) / max(1, sum(w.tokens for w in which))
                      for way, which in (("forced", forced), ("unforced", plain), ("free", free)) if which})


def _fine(written: Written) -> bool:
    return written.valid + written.cut + written.unjudged == written.texts


def _count(found: Iterable[Any]) -> int:
    return sum(bool(each) for each in found)


def spread(values: Sequence[float]) -> tuple[float, ...]:
    """Median, 99th percentile and largest; nothing of nothing."""
    if not values:
        return ()
    ordered = sorted(values)
    return tuple(round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) for share in (0.5, 0.99, 1.0))


def records(found: Sequence[Row], outcomes: Sequence[Outcome], model: Decoder, *, spec: str, settings: dict[str, Any],
            seed: int) -> list[Record]:
    """A record a row, which tells the schemas it rests on."""
    made = []
    for row in found:
        schemas = [[o.case.name, o.case.schema] for o in outcomes if row.set in (ALL, o.case.set)]
        made.append(record(SUITE, model, measured=asdict(row) | {"invalid": row.invalid}, inputs=schemas, settings=settings,
                           seed=seed, method=spec))
    return made
