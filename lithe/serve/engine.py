"""The engine: requests of any method on one model, one thread, one round after another."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Any

from lithe.decode.generate import request as sequence_of
from lithe.decode.loop import Step, step
from lithe.decode.plan import DecodePlan, plan
from lithe.errors import LitheError, UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.sampling.sequence import Sequence
from lithe.serve.request import Event, QueueFullError, Request, Ticket, Usage


class Job:
    """One choice of a request."""

    def __init__(self, ticket: Ticket, choice: int, sequence: Sequence, method: str | None):
        self.ticket, self.choice, self.sequence, self.method = ticket, choice, sequence, method
        self.arrived, self.usage = perf_counter(), Usage(prompt=sequence.prompt)


class Engine:
    """Continuous batching of requests on one model."""

    def __init__(self, model: Decoder, *, method: str | None = None, budget: int | None = None, sequences: int = 64,
                 memory: int | None = None, queue: int = 256, page: int = 64, sharing: bool = True, chunking: bool = True):
        """method: the spec of requests that name none. sequences: most under way at once. queue: most that may wait."""
        self.model, self.method, self.sequences, self.queue = model, method, sequences, queue
        self.plans: dict[str | None, DecodePlan] = {}
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.rounds = self.generated = 0
        self._lock, self._something = threading.Lock(), threading.Condition()
        self._stop, self._thread = False, None
        self._plan(method)

    def submit(self, request: Request) -> Ticket:
        """Queue a request. Raises QueueFullError, or the LitheError that says why it is not legal."""
        if request.choices < 1:
            raise UsageError(f"choices must be at least 1, not {request.choices}")
        if request.constraint or request.adapter or request.prediction or request.logprobs is not None:
            raise UnsupportedError("this engine does not offer constraints, adapters, predictions and log probabilities yet")
        ticket = Ticket(request)
        method = request.method or self.method
        with self._lock:
            self._plan(method)
            jobs = [Job(ticket, i, sequence_of(self.model, list(request.prompt), law=request.law, seed=request.seed + i,
                                               max_tokens=request.max_tokens, stop=request.stops,
                                               ignore_eos=request.ignore_eos), method)
                    for i in range(request.choices)]
            if len(self.waiting) + len(jobs) > self.queue:
                raise QueueFullError(f"{len(self.waiting)} wait already, of at most {self.queue}: try again later")
            self.waiting += jobs
        ticket.wake = self._wake
        self._wake()
        return ticket

    def step(self) -> bool:
        """One round; False when nothing is to be done."""
        with self._lock:
            self._leave()
            while self.waiting and len(self.running) < self.sequences:
                self.running.append(self.waiting.pop(0))
            groups: dict[str | None, list[Job]] = {}
            for job in self.running:
                groups.setdefault(job.method, []).append(job)
        for method, jobs in groups.items():
            for job, done in zip(jobs, step(self.plans[method], [job.sequence for job in jobs]), strict=True):
                self._publish(job, done)
        self.running = [job for job in self.running if not job.sequence.finished]
        self.rounds += bool(groups)
        return bool(groups)

    def start(self) -> None:
        """Run rounds on a thread of the engine's own until `close`."""
        self._thread = threading.Thread(target=self._loop, name="lithe-engine", daemon=True)
        self._thread.start()

    def close(self, drain: float | None = None) -> None:
        """Stop: after what is under way, for at most `drain` seconds, or at once; what is left is cancelled."""
        end = perf_counter() + (drain or 0)
        while (self.waiting or self.running) and perf_counter() < end:
            threading.Event().wait(0.01)
        self._stop = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        for job in [*self.running, *self.waiting]:
            job.ticket.cancelled = True
        self._leave()

    def stats(self) -> dict[str, Any]:
        """What /metrics prints."""
        return {"rounds": self.rounds, "generated": self.generated, "running": len(self.running), "waiting": len(self.waiting)}

    def _plan(self, method: str | None) -> DecodePlan:
        if method not in self.plans:
            self.plans[method] = plan(self.model, draft=method)
        return self.plans[method]

    def _publish(self, job: Job, done: Step) -> None:
        usage, finished = job.usage, job.sequence.finished
        usage.passes, usage.rows = usage.passes + 1, usage.rows + done.nodes
        usage.generated += len(done.tokens)
        self.generated += len(done.tokens)
        job.ticket.publish(Event(job.choice, done.text, done.tokens, done.sources, None, finished, usage if finished else None))

    def _leave(self) -> None:
        now = perf_counter()
        for jobs in (self.waiting, self.running):
            for job in list(jobs):
                late = job.ticket.request.deadline is not None and now - job.arrived > job.ticket.request.deadline
                if job.ticket.cancelled or late:
                    jobs.remove(job)
                    job.ticket.publish(Event(job.choice, finished="cancelled" if job.ticket.cancelled else "deadline",
                                             usage=job.usage))

    def _wake(self) -> None:
        with self._something:
            self._something.notify_all()

    def _loop(self) -> None:
        while not self._stop:
            try:
                busy = self.step()
            except LitheError as problem:
                for job in self.running:
                    job.ticket.publish(Event(job.choice, finished="error", usage=job.usage, error=str(problem)))
                self.running, busy = [], True
            if not busy:
                with self._something:
                    self._something.wait(0.05)
