"""From a request to jobs, once it is known to be legal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lithe import registry
from lithe.decode.generate import request as sequence_of
from lithe.errors import TooLargeError, UnsupportedError, UsageError
from lithe.loops import check
from lithe.sampling.constraint import compiled
from lithe.serve.job import Desk, Job
from lithe.serve.request import Request, Ticket

if TYPE_CHECKING:
    from lithe.serve.engine import Engine


def jobs_of(engine: Engine, request: Request) -> list[Job]:
    """A job for each choice; those that fork from another are its followers. Raises the LitheError that says what is wrong."""
    model = engine.model
    _check(engine, request)
    desk = engine.desk(_method(engine, request))
    if request.logprobs is not None and not desk.joins:
        raise UnsupportedError(f"{desk.plan.name} runs in rounds of its own, which tell no log probabilities")
    if request.constraint is not None and desk.replaces:
        raise UnsupportedError(f"{desk.plan.name} chooses tokens itself, so its text cannot be constrained"
                               + (": this model fills masked places in any order" if desk.fills else ": use a draft"))
    program = None
    if request.constraint is not None:
        program = compiled(model.tokenizer, request.constraint, request.constraint_text)
    adapter, ticket, jobs = _adapter(engine, request.adapter), Ticket(request), []
    ticket.wake = engine.wake
    for i in range(request.choices):
        sequence = sequence_of(model, list(request.prompt), law=request.law, max_tokens=request.max_tokens, stop=request.stops,
                               seed=request.seed + i, ignore_eos=request.ignore_eos, constraint=program)
        sequence.adapter, sequence.prediction = adapter, request.prediction or ()
        check(desk.plan, sequence)
        jobs.append(Job(ticket, i, sequence, desk))
    if desk.joins:
        _fits(engine, jobs[0], desk)
        if desk.reads is None:
            jobs[0].followers = jobs[1:]
            return jobs[:1]
    return jobs


def _check(engine: Engine, request: Request) -> None:
    if not 1 <= request.choices <= engine.sequences:
        raise UsageError(f"choices must be between 1 and {engine.sequences}, the most that run at once, not {request.choices}")
    if request.logprobs is not None and not 0 <= request.logprobs <= engine.model.config.vocab:
        raise UsageError(f"logprobs must lie between 0 and the vocabulary's {engine.model.config.vocab}")
    if request.echo and request.logprobs is None:
        raise UsageError("echo gives the log probabilities of the prompt: say how many with logprobs")
    if request.deadline is not None and not request.deadline > 0:
        raise UsageError(f"the deadline must lie above 0 seconds, not {request.deadline}")
    if request.constraint is None and request.constraint_text is not None:
        raise UsageError("constraint_text was given without a constraint that reads it")
    if request.prediction is not None and engine.fills:
        raise UnsupportedError("a prediction is verified from left to right, and this model fills masked places: leave it out")
    if request.prediction is not None and request.method is not None:
        raise UsageError("a prediction is a draft of its own: leave out the method, or the prediction")


def _method(engine: Engine, request: Request) -> str | None:
    """The spec to decode with: what drafts from a prediction where there is one."""
    if request.prediction is None:
        return request.method or engine.method
    fits = [entry for entry in registry.entries("decode", "draft") if "prediction" in entry.card.needs]
    if not fits:
        raise UnsupportedError("no draft on the shelf makes use of a prediction")
    return fits[0].address


def _adapter(engine: Engine, name: str | None) -> int | None:
    """The number of a named adapter; None, the model's default, where none is named."""
    if name is None:
        return None
    if engine.model.adapters is None:
        raise UsageError(f"no adapter {name!r} is attached to this model, nor any other")
    rack: Any = engine.model.adapters.owner
    return rack.number(name)


def _fits(engine: Engine, job: Job, desk: Desk) -> None:
    """Raise TooLargeError for what could not run even alone."""
    store, sequence = engine.room.store, job.sequence
    if -(-(sequence.prompt + sequence.limit) // store.size) + 1 > store.count:
        raise TooLargeError(f"{sequence.prompt} tokens and {sequence.limit} more do not fit into the {store.count} pages of "
                            f"{store.size} tokens: ask for fewer, or allow the engine more memory")
