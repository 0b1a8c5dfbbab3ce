"""Counters and histograms in Prometheus' text format, under the names that vLLM's users know.

They are changed in the server's loop alone; what the engine counts is asked of it when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

from lithe.serve.request import Event, Usage

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS = tuple(float(2**i) for i in range(18))
TIMES = {
    "time_to_first_token_seconds": "from submission to the first token",
    "inter_token_latency_seconds": "between two rounds that gave a text tokens",
    "e2e_request_latency_seconds": "from submission to the last token",
    "request_queue_time_seconds": "waiting for a place",
    "request_prefill_time_seconds": "reading the prompt",
    "request_decode_time_seconds": "generating",
}
SIZES = {"request_prompt_tokens": "tokens of a prompt", "request_generation_tokens": "tokens of a text"}
COUNTS = {
    "prompt_tokens_total": "tokens of prompts",
    "prompt_tokens_cached_total": "those not read again",
    "generation_tokens_total": "tokens generated",
    "spec_decode_num_drafts_total": "passes that gave tokens",
    "spec_decode_num_draft_tokens_total": "tokens drafted",
    "spec_decode_num_accepted_tokens_total": "drafted tokens that were accepted",
    "num_preemptions_total": "texts that made room and were read again",
}
# the engine's word -> ours; what the engine does not tell is not printed
GAUGES = {
    "running": ("num_requests_running", "texts under way"),
    "waiting": ("num_requests_waiting", "texts that wait for a place"),
    "cache_usage": ("kv_cache_usage_perc", "share of the cache's pages in use, 1 is all"),
    "pages_kept": ("prefix_cache_pages", "pages kept for prompts that begin alike"),
    "budget": ("token_budget", "rows of a pass at most"),
    "prefix_hits": ("prefix_cache_hits_total", "tokens of prompts found in the cache"),
    "prefix_queries": ("prefix_cache_queries_total", "tokens of prompts looked for in the cache"),
    "rounds": ("engine_turns_total", "turns of the engine"),
    "rows": ("engine_rows_total", "rows of its passes"),
}


class Histogram:
    def __init__(self, bounds: tuple[float, ...]):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total = 0
        for bound, count in zip([*map(_number, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """What the server has seen. model: the label of all its series."""

    def __init__(self, model: str):
        self.labels = f'model_name="{_escaped(model)}"'
        self.histograms = {name: Histogram(SECONDS) for name in TIMES} | {name: Histogram(TOKENS) for name in SIZES}
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.ends: Counter[str] = Counter()
        self.statuses: Counter[tuple[str, int]] = Counter()

    def watch(self) -> Watch:
        return Watch(self)

    def done(self, end: str, usage: Usage, seconds: float) -> None:
        """One text has ended."""
        self.ends[end] += 1
        self.histograms["e2e_request_latency_seconds"].add(seconds)
        for part in ("queue", "prefill", "decode"):
            self.histograms[f"request_{part}_time_seconds"].add(usage.seconds.get(part, 0.0))
        self.histograms["request_prompt_tokens"].add(usage.prompt)
        self.histograms["request_generation_tokens"].add(usage.generated)
        for name, value in zip(COUNTS, (usage.prompt, usage.cached, usage.generated, usage.passes, usage.drafted,
                                        usage.accepted, usage.preempted), strict=True):
            self.counts[name] += value

    def text(self, engine: Mapping[str, Any]) -> str:
        """All of it, as /metrics prints it."""
        return "\n".join(self._lines(engine)) + "\n"

    def _lines(self, engine: Mapping[str, Any]) -> Iterator[str]:
        for key, (name, meaning) in GAUGES.items():
            if key in engine:
                yield from _head(name, meaning, "counter" if name.endswith("_total") else "gauge")
                yield f"lithe:{name}{{{self.labels}}} {engine[key]}"
        for name, meaning in COUNTS.items():
            yield from _head(name, meaning, "counter")
            yield f"lithe:{name}{{{self.labels}}} {self.counts[name]}"
        yield from _head("request_success_total", "texts that ended, by how", "counter")
        for end, count in sorted(self.ends.items()):
            yield f'lithe:request_success_total{{{self.labels},finished_reason="{end}"}} {count}'
        yield from _head("http_requests_total", "answers, by path and status", "counter")
        for (path, status), count in sorted(self.statuses.items()):
            yield f'lithe:http_requests_total{{{self.labels},path="{path}",status="{status}"}} {count}'
        for name, meaning in (TIMES | SIZES).items():
            yield from _head(name, meaning, "histogram")
            yield from self.histograms[name].lines(f"lithe:{name}", self.labels)


class Watch:
    """The clock of one request's texts."""

    def __init__(self, metrics: Metrics):
        self.metrics, self.begun, self.last = metrics, perf_counter(), dict[int, float]()

    def see(self, number: int, event: Event) -> None:
        now = perf_counter()
        if event.tokens:
            name = "inter_token_latency_seconds" if number in self.last else "time_to_first_token_seconds"
            self.metrics.histograms[name].add(now - self.last.get(number, self.begun))
            self.last[number] = now
        if event.finished:
            self.metrics.done(event.finished, event.usage or Usage(), now - self.begun)

    def leave(self, texts: int) -> None:
        """So many texts that nobody waits for any more."""
        if texts:
            self.metrics.ends["cancelled"] += texts


def _head(name: str, meaning: str, kind: str) -> Iterator[str]:
    yield f"# HELP lithe:{name} {meaning}"
    yield f"# TYPE lithe:{name} {kind}"


def _number(value: float) -> str:
    return f"{value:g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
