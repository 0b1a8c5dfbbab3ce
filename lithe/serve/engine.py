"""The engine: requests of any method on one model, one thread, one turn after another.

    take in -> schedule -> one pass without padding -> walk, commit, publish

A request's text is what decoding it alone would give, bit for bit on compiled layers: whatever came before it, runs beside it,
is shared with it, or took its memory for a while.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from time import perf_counter, sleep
from typing import Any

import torch

from lithe.decode.loop import Step, step
from lithe.errors import LitheError, UsageError
from lithe.model.decoder import Decoder
from lithe.model.paged import Pages
from lithe.serve.budget import from_left, pages, policy, profile
from lithe.serve.desks import Desks
from lithe.serve.intake import jobs_of
from lithe.serve.job import BrokenMethod, Desk, Job, logprobs
from lithe.serve.line import Line
from lithe.serve.request import QueueFullError, Request, Ticket
from lithe.serve.room import PagedRoom
from lithe.serve.turn import Turn, take

IDLE = 0.05  # seconds between looks at deadlines while there is nothing to do
GRACE = 0.0005  # and between looks whether those who build a plan are done


class Engine:
    """Continuous batching of requests on one model."""

    def __init__(self, model: Decoder, *, method: str | None = None, schedule: str | None = None, share: str | None = None,
                 budget: int | None = None, between: float | None = None, sequences: int = 64, memory: int | None = None,
                 queue: int = 256, page: int = 64, sharing: bool = True, chunking: bool = True):
        """method: the spec of requests that name none. schedule, share: specs of serve/schedule and attention/share.

        budget: most rows of a turn; by default as many as take `between` seconds, by the measured cost of passes and of what
        they attend to. sequences: most that run at once. memory: bytes of the pages. queue: most requests that may wait. page:
        tokens of a page, a power of two. sharing: whether what was read is kept for prompts that begin alike, and read
        together. chunking: whether long prompts are read in pieces, where no budget is given.
        """
        if min(sequences, queue) < 1 or (budget is not None and budget < 1):
            raise UsageError("sequences, queue and budget must be at least 1")
        from_left(model)
        self.model, self.method, self.queue = model, method, queue
        whole = sequences * model.config.context
        self.budget, self.depth = (budget or whole, 0.0) if budget or not chunking else profile(model, between)
        self.sequences = min(sequences, self.budget)
        self.policy = policy("serve", "schedule", schedule, "meets_budget")
        self.room = PagedRoom(Pages.like(model, pages=pages(model, page, self.sequences, memory), size=page), sharing)
        self.share = policy("attention", "share", share, "same_tokens").group if sharing else None
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.apart: list[Job] = []  # whose methods need rounds of their own
        self.inbox: deque[Job] = deque()
        names = ("rounds", "rows", "generated", "prompt", "preempted", "finished", "busy")  # the last in seconds
        self.counts: dict[str, float] = dict.fromkeys(names, 0)
        self.ended, self._mode = dict[str, int](), torch.inference_mode()
        self.desks, self._news = Desks(model, method), threading.Event()
        self._busy, self._door, self._stop = self.desks.lock, threading.Lock(), False
        self._thread: threading.Thread | None = None
        self.desk(method)

    # ---- what other threads call ----

    def submit(self, request: Request) -> Ticket:
        """Queue a request. Raises QueueFullError, or the LitheError that says why it is not legal."""
        jobs = jobs_of(self, request)
        with self._door:  # what is not refused is in the inbox before `close` looks
            if self._stop:
                raise QueueFullError("the engine is closing")
            if len(self.waiting) + len(self.inbox) >= self.queue:
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
        with self._door:
            self._stop = True
        end = perf_counter() + (drain or 0.0)
        while self.busy and perf_counter() < end:
            self.step() if self._thread is None else sleep(0.01)
        with self._busy:
            for job in self.everyone():
                job.ticket.cancelled = True
            self._take_in()
        self._news.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def desk(self, method: str | None) -> Desk:
        """The place of a method. Raises LitheError where the spec is not legal for this model."""
        return self.desks.get(method, lambda: {job.desk for job in self.everyone()})

    def wake(self) -> None:
        """There is news, such as a cancellation."""
        self._news.set()

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
            "cache_usage": 1 - self.room.spare / store.count, "pages_kept": len(tree.nodes) if tree else 0,
            "pages_evicted": tree.evicted if tree else 0, "prefix_queries": self.room.asked, "prefix_hits": self.room.saved,
            "methods": len(self.desks.held), "ended": dict(self.ended)}

    # ---- a turn ----

    def step(self) -> bool:
        """One turn; False when nothing is to be done."""
        with self._busy, self._mode:
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
                    self._leave(job, "cancelled" if job.ticket.cancelled else "deadline")
        self.waiting = sorted(self.waiting, key=lambda job: job.order)  # in place, others would see it empty meanwhile
        self.running = sorted(self.running, key=lambda job: job.order)
        seats = self.sequences - len(self.apart) - sum(job.seats for job in self.running)
        for job in list(self.waiting):
            if (seats := seats - job.seats) < 0:
                break  # who waits for seats is not overtaken: it might wait for ever
            if not job.desk.joins:
                self.waiting.remove(job)
                self.apart.append(job)
                self._begin(job)

    def _scheduled(self) -> Line:
        self.room.begin()
        decoding = [job for job in self.running if not job.left]
        for desk in {job.desk for job in self.running}:
            desk.ready, desk.slots = [], max(1, self.budget // max(1, len(decoding)))
        for job in decoding:
            job.tree = None
            job.desk.ready.append(job)
        line = Line(self.room, self.running, [job for job in self.waiting if job.desk.joins], budget=self.budget,
                    seats=self.sequences - len(self.apart), depth=self.depth)
        self.policy.turn(line)
        self.running = line.running
        for job in line.admitted:
            self.waiting.remove(job)
            self._begin(job)
        for job in line.preempted:
            job.usage.preempted += 1
            self.waiting.append(job)
        self.counts["preempted"] += len(line.preempted)
        return line

    def _took(self, done: Turn) -> None:
        """Tell the tickets, fork what is read, let go of what has finished."""
        self.counts["rounds"] += 1
        self.counts["rows"] += done.rows
        self.counts["busy"] += done.seconds
        for job in done.read:
            job.usage.seconds["prefill"] += done.seconds
            if not job.whole:
                self.room.remember(job)
            if not job.left:
                job.read_states()
        for job in done.jobs:  # one whose prompt was there, or is one token, forks when it decodes
            if job.followers and job.length >= job.sequence.prompt - 1:
                self._fork(job)
        for job, why in done.failed:
            self.running.remove(job)
            self._leave(job, "refused", why)
        for job, result, found in done.steps:
            top = job.request.logprobs
            told = None if top is None else logprobs(found.logits_NV[[0, *found.walk.path]], result.tokens, top)
            job.usage.seconds["decode"] += done.seconds
            self._publish(job, result, told)
        for problem in done.broken:
            self._fail(problem)

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
        desks = list(dict.fromkeys(job.desk for job in self.apart))
        for desk in desks:
            jobs, begun = [job for job in self.apart if job.desk is desk], perf_counter()
            try:
                steps = step(desk.plan, [job.sequence for job in jobs])
            except Exception as problem:
                self._fail(BrokenMethod(desk, problem))
                continue
            for job, done in zip(jobs, steps, strict=True):
                job.usage.seconds["decode"] += perf_counter() - begun
                self._publish(job, done, None)
            self.counts["busy"] += perf_counter() - begun
        return bool(desks)

    # ---- a job's way ----

    def _begin(self, job: Job) -> None:
        if job.began is None:
            job.began = perf_counter()
            job.usage.seconds["queue"] = job.began - job.arrived
            self.counts["prompt"] += job.sequence.prompt

    def _publish(self, job: Job, done: Step, told: list | None) -> None:
        self.counts["generated"] += len(done.tokens)
        if job.sequence.finished:
            (self.running if job.desk.joins else self.apart).remove(job)
            self.room.release(job)
            self._count(job.sequence.finished)
        job.publish(done, told)

    def _leave(self, job: Job, why: str, error: str | None = None) -> None:
        """A job that will not finish by itself, with those that wait for its prompt."""
        self.room.release(job)
        for one in (job, *job.followers):
            self._count(why)
            one.end(why, error)
        job.desk.left(idle=not any(other.desk is job.desk for other in self.running))

    def _count(self, why: str) -> None:
        self.ended[why] = self.ended.get(why, 0) + 1
        self.counts["finished"] += 1

    def everyone(self) -> list[Job]:
        return [*self.inbox, *self.waiting, *self.running, *self.apart]

    def _loop(self) -> None:
        while not self._stop or self.busy:
            self._news.clear()
            try:
                if self.step() and not self.desks.guests:
                    continue
            except Exception as problem:  # whatever it was, those that wait must hear of it, and others go on
                self._fail(problem)
            while self.desks.guests:  # a lock alone would let them wait for as long as there is work
                sleep(GRACE)
            self._news.wait(IDLE if self.busy or not self._stop else 0)

    def _fail(self, problem: Exception) -> None:
        """End the texts of a broken method, or all that ran: what their pages hold is not known."""
        print(f"lithe: a turn failed: {type(problem.__cause__ or problem).__name__}: {problem}", file=sys.stderr)
        said = str(problem) if isinstance(problem, LitheError) else "the engine failed; its log says how"
        desk = problem.desk if isinstance(problem, BrokenMethod) else None
        with self._busy:
            gone = [job for job in (*self.running, *self.apart) if desk in (None, job.desk)]
            self.running = [job for job in self.running if job not in gone]
            self.apart = [job for job in self.apart if job not in gone]
            for job in gone:
                job.table.length = 0  # nothing of it is remembered
                self._leave(job, "error", said)
