"""The engine: requests of any method on one model, one thread, one turn after another.

    take in -> schedule -> one pass without padding -> walk, commit, publish

A request's text is what decoding it alone would give, bit for bit on compiled layers: whatever came before it, runs beside it,
is shared with it, or took its memory for a while.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from time import perf_counter
from typing import Any

import torch

from lithe import registry
from lithe.decode.generate import request as sequence_of
from lithe.decode.loop import Step, step
from lithe.decode.plan import plan
from lithe.errors import LitheError, TooLargeError, UnsupportedError, UsageError
from lithe.model.checkpoint import available_memory
from lithe.model.decoder import Decoder
from lithe.model.paged import Pages
from lithe.serve.budget import profile
from lithe.serve.job import Desk, Job, logprobs
from lithe.serve.line import Line
from lithe.serve.request import QueueFullError, Request, Ticket
from lithe.serve.room import PagedRoom
from lithe.serve.turn import Turn, take

MEMORY = 0.4  # share of what is available that pages may take unless more is said
METHODS = 16  # kept ready
IDLE = 0.05  # seconds between looks at deadlines while there is nothing to do


class Engine:
    """Continuous batching of requests on one model."""

    def __init__(self, model: Decoder, *, method: str | None = None, schedule: str | None = None, share: str | None = None,
                 budget: int | None = None, between: float | None = None, sequences: int = 64, memory: int | None = None,
                 queue: int = 256, page: int = 64, sharing: bool = True, chunking: bool = True):
        """method: the spec of requests that name none. schedule, share: specs of serve/schedule and attention/share.

        budget: most rows of a turn; by default as many as take `between` seconds, by the measured cost of passes. sequences:
        most that run at once. memory: bytes of the pages. queue: most requests that may wait. page: tokens of a page, a power
        of two. sharing: whether what was read is kept for prompts that begin alike, and read together. chunking: whether
        long prompts are read in pieces.
        """
        if min(sequences, queue) < 1 or (budget is not None and budget < 1):
            raise UsageError("sequences, queue and budget must be at least 1")
        self.model, self.method, self.queue = model, method, queue
        self.budget = (budget or profile(model, between)) if chunking else sequences * model.config.context
        self.sequences = min(sequences, self.budget)
        self.policy = _policy("serve", "schedule", schedule, "meets_budget")
        self.room = PagedRoom(Pages.like(model, pages=_pages(model, page, self.sequences, memory), size=page), sharing)
        self.share = _policy("attention", "share", share, "same_tokens").group if sharing else None
        self.desks: dict[str | None, Desk] = {}
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.apart: list[Job] = []  # whose methods need rounds of their own
        self.inbox: deque[Job] = deque()
        self.counts: dict[str, float] = dict.fromkeys(("turns", "rows", "generated", "prompt", "preempted", "finished", "busy"), 0)
        self.ended: dict[str, int] = {}
        self._busy, self._news = threading.RLock(), threading.Event()
        self._stop, self._thread = False, None
        self._desk(method)

    # ---- what other threads call ----

    def submit(self, request: Request) -> Ticket:
        """Queue a request. Raises QueueFullError, or the LitheError that says why it is not legal."""
        jobs = self._jobs(request)
        if self._stop:
            raise QueueFullError("the engine is closing")
        if len(self.waiting) + len(self.inbox) + len(jobs) > self.queue + len(jobs) - 1:
            raise QueueFullError(f"{self.queue} requests wait already: try again later", after=self.wait)
        self.inbox.extend(jobs)
        self._news.set()
        return jobs[0].ticket

    def start(self) -> None:
        """Run turns on a thread of the engine's own until `close`."""
        self._thread = threading.Thread(target=self._loop, name="lithe-engine", daemon=True)
        self._thread.start()

    def close(self, drain: float | None = None) -> None:
        """Take no more; finish what is under way for at most `drain` seconds, and cancel what is left."""
        self._stop, end = True, perf_counter() + (drain or 0.0)
        while self.busy and perf_counter() < end:
            if self._thread is None:
                self.step()
            else:
                threading.Event().wait(0.01)
        with self._busy:
            for job in self._everyone():
                job.ticket.cancelled = True
            self._take_in()
        self._news.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def busy(self) -> bool:
        return bool(self.inbox or self.waiting or self.running or self.apart)

    @property
    def wait(self) -> float:
        """Seconds until a place in the queue may be free: what a finished text has taken on average, by seats."""
        done = self.counts["finished"]
        return max(1.0, self.counts["busy"] / done) if done else 1.0

    def stats(self) -> dict[str, Any]:
        """What happened so far and how things stand."""
        store, tree = self.room.store, self.room.tree
        return self.counts | {
            "running": len(self.running) + len(self.apart), "waiting": len(self.waiting) + len(self.inbox),
            "budget": self.budget, "sequences": self.sequences, "pages": store.count, "page": store.size,
            "pages_used": store.count - len(store.free), "pages_kept": len(tree.nodes) if tree else 0,
            "pages_evicted": tree.evicted if tree else 0, "prompt_saved": self.room.saved, "ended": dict(self.ended),
            "methods": len(self.desks)}

    # ---- a turn ----

    def step(self) -> bool:
        """One turn; False when nothing is to be done."""
        with self._busy, torch.inference_mode():
            self._take_in()
            line = self._scheduled()
            if line.taken:
                self._took(take(self.model, self.room.store, self.share, line.taken))
            apart = self._apart()
            return bool(line.taken or apart or line.admitted or line.preempted)

    def _take_in(self) -> None:
        """New jobs, in their order; those whose time is over or who were cancelled leave."""
        while self.inbox:
            self.waiting.append(self.inbox.popleft())
        now = perf_counter()
        for jobs in (self.waiting, self.running, self.apart):
            for job in list(jobs):
                limit = job.request.deadline
                if job.ticket.cancelled or (limit is not None and now - job.arrived > limit):
                    jobs.remove(job)
                    for one in (job, *job.followers):
                        self._leave(one, "cancelled" if job.ticket.cancelled else "deadline")
        self.waiting.sort(key=lambda job: job.order)
        self.running.sort(key=lambda job: job.order)
        for job in [job for job in self.waiting if not job.desk.joins]:
            if len(self.running) + len(self.apart) < self.sequences:
                self.waiting.remove(job)
                self.apart.append(job)
                self._begin(job)

    def _scheduled(self) -> Line:
        self.room.begin()
        decoding = [job for job in self.running if not job.left]
        for desk in self.desks.values():
            desk.ready, desk.slots = [], max(1, self.budget // max(1, len(decoding)))
        for job in decoding:
            job.tree = None
            job.desk.ready.append(job)
        line = Line(self.room, self.running, [job for job in self.waiting if job.desk.joins], budget=self.budget,
                    seats=self.sequences - len(self.apart))
        self.policy.turn(line)
        self.running = line.running  # type: ignore[assignment]
        for job in line.admitted:
            self.waiting.remove(job)  # type: ignore[arg-type]
            self._begin(job)  # type: ignore[arg-type]
        for job in line.preempted:
            job.usage.preempted += 1  # type: ignore[attr-defined]
            self.waiting.append(job)  # type: ignore[arg-type]
        self.counts["preempted"] += len(line.preempted)
        return line

    def _took(self, done: Turn) -> None:
        """Tell the tickets, fork what is read, let go of what has finished."""
        self.counts["turns"] += 1
        self.counts["rows"] += done.rows
        self.counts["busy"] += done.seconds
        for job in done.read:
            job.usage.seconds["prefill"] += done.seconds
            if not job.whole:
                self.room.remember(job)
            if job.length >= job.sequence.prompt - 1:
                self._fork(job)
            if not job.left:
                job.read_states()
        for job, result, found in done.steps:
            nodes = [0, *found.walk.path]
            top = job.request.logprobs
            told = None if top is None else logprobs(found.logits_NV[nodes], result.tokens, top)
            job.usage.seconds["decode"] += done.seconds
            self._publish(job, result, told)

    def _fork(self, job: Job) -> None:
        """The other choices go on from the same pages."""
        for other in job.followers:
            other.table = self.room.store.fork(job.table, job.sequence.prompt - 1)
            other.usage.cached, other.prompt_logprobs = job.sequence.prompt - 1, job.prompt_logprobs
            self._begin(other)
            self.running.append(other)
        job.followers = []

    def _apart(self) -> bool:
        """Rounds of methods that want the target's lanes, or replace the loop."""
        groups: dict[Desk, list[Job]] = {}
        for job in self.apart:
            groups.setdefault(job.desk, []).append(job)
        for desk, jobs in groups.items():
            begun = perf_counter()
            for job, done in zip(jobs, step(desk.plan, [job.sequence for job in jobs]), strict=True):
                job.usage.seconds["decode"] += perf_counter() - begun
                self._publish(job, done, None)
            self.counts["busy"] += perf_counter() - begun
        return bool(groups)

    # ---- a job's way ----

    def _jobs(self, request: Request) -> list[Job]:
        """A job for each choice. Raises the LitheError that says why the request is not legal."""
        if not 1 <= request.choices <= self.sequences:
            raise UsageError(f"choices must be between 1 and {self.sequences}, the most that run at once, not {request.choices}")
        if request.constraint or request.prediction or request.adapter:
            raise UnsupportedError("constraints, predictions and adapters are not offered yet")
        if request.logprobs is not None and not 0 <= request.logprobs <= self.model.config.vocab:
            raise UsageError(f"logprobs must lie between 0 and the vocabulary's {self.model.config.vocab}")
        desk, ticket = self._desk(request.method or self.method), Ticket(request)
        if request.logprobs is not None and not desk.joins:
            raise UnsupportedError(f"{desk.plan.name} runs in rounds of its own, which tell no log probabilities")
        ticket.wake = self._news.set
        jobs = []
        for i in range(request.choices):
            sequence = sequence_of(self.model, list(request.prompt), law=request.law, max_tokens=request.max_tokens,
                                   seed=request.seed + i, stop=request.stops, ignore_eos=request.ignore_eos)
            desk.plan.rule(sequence)
            jobs.append(Job(ticket, i, sequence, desk))
        store = self.room.store
        if desk.joins and -(-(jobs[0].sequence.prompt + jobs[0].sequence.limit + 64) // store.size) > store.count:
            raise TooLargeError(f"{jobs[0].sequence.prompt} tokens and {jobs[0].sequence.limit} more do not fit into the "
                                f"{store.count} pages of {store.size} tokens: ask for fewer, or allow the engine more memory")
        if desk.joins and desk.reads is None:
            jobs[0].followers = jobs[1:]
            return jobs[:1]
        return jobs

    def _desk(self, method: str | None) -> Desk:
        """The method's place, made where it is new. Raises LitheError where the spec is not legal for this model."""
        desk = self.desks.get(method)
        if desk is None:
            with self._busy:
                idle = [name for name, one in self.desks.items() if name != self.method and not any(
                    job.desk is one for job in self._everyone())]
                if len(self.desks) >= METHODS and not idle:
                    raise QueueFullError(f"{len(self.desks)} methods are in use already: try again later", after=self.wait)
                desk = Desk(plan(self.model, draft=method))
                if len(self.desks) >= METHODS:
                    del self.desks[idle[0]]
                self.desks = self.desks | {method: desk}
        return desk

    def _begin(self, job: Job) -> None:
        if job.began is None:
            job.began = perf_counter()
            job.usage.seconds["queue"] = job.began - job.arrived
            self.counts["prompt"] += job.sequence.prompt

    def _publish(self, job: Job, done: Step, told: list | None) -> None:
        usage = job.usage
        usage.passes, usage.rows, usage.generated = usage.passes + 1, usage.rows + done.nodes, usage.generated + len(done.tokens)
        usage.drafted, usage.accepted = usage.drafted + done.nodes - 1, usage.accepted + len(done.tokens) - 1
        self.counts["generated"] += len(done.tokens)
        if job.sequence.finished:
            (self.running if job.desk.joins else self.apart).remove(job)
            self.room.release(job)
            self._count(job.sequence.finished)
        job.publish(done.text, done.tokens, done.sources, told)

    def _leave(self, job: Job, why: str, error: str | None = None) -> None:
        """A job that will not finish by itself."""
        self.room.release(job)
        job.desk.left(idle=not any(other.desk is job.desk for other in self.running))
        self._count(why)
        job.end(why, error)

    def _count(self, why: str) -> None:
        self.ended[why] = self.ended.get(why, 0) + 1
        self.counts["finished"] += 1

    def _everyone(self) -> list[Job]:
        return [*self.inbox, *self.waiting, *self.running, *self.apart]

    def _loop(self) -> None:
        while not self._stop or self.busy:
            self._news.clear()
            try:
                if self.step():
                    continue
            except Exception as problem:  # whatever it was, those that wait must hear of it, and others go on
                print(f"lithe: a turn failed: {type(problem).__name__}: {problem}", file=sys.stderr)
                self._fail(problem)
            self._news.wait(IDLE if self.busy or not self._stop else 0)

    def _fail(self, problem: Exception) -> None:
        """End all that ran: what their pages hold is not known."""
        said = str(problem) if isinstance(problem, LitheError) else "the engine failed; its log says how"
        with self._busy:
            gone, self.running, self.apart = [*self.running, *self.apart], [], []
            for job in gone:
                job.table.length = 0  # nothing of it is remembered
                for one in (job, *job.followers):
                    self._leave(one, "error", said)


def _policy(room: str, shelf: str, spec: str | None, promise: str) -> Any:
    """The method of a spec; without one the first numbered row on the shelf that keeps the promise."""
    if spec is None:
        fits = [entry for entry in registry.entries(room, shelf) if entry.card.row is not None and promise in entry.card.promises]
        if not fits:
            raise UnsupportedError(f"nothing on the shelf {room}/{shelf} promises {promise}: name a method")
        return fits[0].module.Method(fits[0].knobs())
    found = registry.parse(spec, shelf)
    return found.entry.module.Method(found.knobs)


def _pages(model: Decoder, size: int, sequences: int, memory: int | None) -> int:
    """How many pages: for as many whole contexts as may run, as far as memory goes."""
    one = Pages.bytes(model.config, size, model.dtype)
    if memory is None:
        free = available_memory(model.device)
        memory = int(MEMORY * free) if free is not None else 2**30
    wanted = sequences * (-(-(model.config.context + 64) // size) + 1)
    pages = min(wanted, memory // max(one, 1))
    if pages < 2:
        raise TooLargeError(f"{memory} bytes hold {pages} pages of {size} tokens, each {one} bytes: allow more memory, or choose smaller pages")
    return pages
