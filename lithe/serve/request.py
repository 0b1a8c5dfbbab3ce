"""What is asked of an engine, what it answers, and the ticket that joins the two."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lithe.errors import LitheError
from lithe.sampling.law import Law

_numbers = itertools.count(1)


class QueueFullError(LitheError):
    """Nothing more can wait. `after`: seconds in which a place may be free."""

    def __init__(self, message: str, after: float = 1.0):
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how to go on from it."""

    prompt: tuple[int, ...]  # token ids
    law: Law = field(default_factory=Law)
    max_tokens: int = 128
    seed: int = 0
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    choices: int = 1  # texts from the one prompt, by seed, seed + 1, ...
    method: str | None = None  # a spec of decode; None is the engine's own
    adapter: str | None = None  # a name on the model's rack
    constraint: str | None = None  # a spec of sampling/constrain
    constraint_text: str | None = None  # what it enforces: a schema, a pattern, a grammar, choices
    prediction: tuple[int, ...] | None = None  # what the text may well be: guessed first
    logprobs: int | None = None  # so many likeliest tokens with each token's log probability; 0: its own alone
    echo: bool = False  # log probabilities of the prompt as well
    priority: int = 0  # larger goes first
    deadline: float | None = None  # seconds from submission
    user: str | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log probability of a token, before any warp, and of the likeliest in its place."""

    token: int
    logprob: float | None  # None: nothing came before it
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Usage:
    """What a choice cost. Rows and passes are of this choice alone, however many shared the pass."""

    prompt: int = 0
    cached: int = 0  # tokens of the prompt that were not read again
    generated: int = 0
    passes: int = 0  # that gave it tokens
    rows: int = 0  # of those passes
    drafted: int = 0
    accepted: int = 0
    accepted_prediction: int = 0
    rejected_prediction: int = 0
    preempted: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"queue": 0.0, "prefill": 0.0, "decode": 0.0})


@dataclass(frozen=True)
class Event:
    """What one round gave one choice."""

    choice: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # of each token: the draft's word for it, "" for the model's own
    logprobs: list[TokenLogprob] | None = None
    finished: str | None = None  # "stop", "eos", "length", "cancelled", "deadline", "refused" (it cannot be met) or "error"
    usage: Usage | None = None  # with the last event of a choice
    prompt_logprobs: list[TokenLogprob] | None = None  # with the first event, where echo was asked for
    error: str | None = None  # what went wrong, where finished is "refused" or "error"


class Ticket:
    """A request under way. Any thread may listen and cancel."""

    def __init__(self, request: Request):
        self.request, self.number = request, next(_numbers)
        self.cancelled = False
        self.open = request.choices  # that have not finished
        self._past: list[Event] = []  # until somebody listens
        self._listeners: list[Callable[[Event], None]] = []
        self._lock = threading.Lock()
        self.wake: Callable[[], None] = lambda: None  # the engine's

    def listen(self, call: Callable[[Event], None]) -> None:
        """Call with every event, those that were published before included; from the engine's thread, so be quick."""
        with self._lock:
            for event in self._past:
                call(event)
            self._past = []
            self._listeners.append(call)

    def events(self) -> Iterator[Event]:
        """Every event until all choices have finished; waits for them."""
        found: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.listen(found.put)
        left = self.request.choices
        while left:
            event = found.get()
            left -= event.finished is not None
            yield event

    def cancel(self) -> None:
        """Ask that nothing more be done for it; its choices finish as "cancelled" unless they were quicker."""
        self.cancelled = True
        self.wake()

    def publish(self, event: Event) -> None:
        """Tell whoever listens. The engine's alone."""
        with self._lock:
            self.open -= event.finished is not None
            if not self._listeners:
                self._past.append(event)
            for call in list(self._listeners):
                try:
                    call(event)
                except Exception:  # such as of a connection that is gone: no other request may suffer from it
                    self._listeners.remove(call)
                    self.cancelled = True

    @property
    def finished(self) -> bool:
        return self.open == 0
