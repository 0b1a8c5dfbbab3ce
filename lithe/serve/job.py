"""What an engine keeps of each text under way, and of each method that decodes."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence as Seq
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lithe.decode.loop import propose
from lithe.errors import LitheError
from lithe.model.paged import Table
from lithe.ops.tree import Tree
from lithe.sampling.sequence import Sequence
from lithe.sampling.step import Step
from lithe.serve.request import Event, Ticket, TokenLogprob, Usage

OWN_ROUNDS = ("join", "begun", "enters", "late")  # verbs of drafts that want the target's lanes or a pass of their own
STALE = 64  # texts that left before their end, after which a draft forgets what it knows of each


class BrokenMethod(LitheError):
    """A method failed at its work: its texts end, those of others go on."""

    def __init__(self, desk: Desk, problem: Exception):
        super().__init__(str(problem) if isinstance(problem, LitheError) else f"{desk.plan.name} is broken: {problem}")
        self.desk = desk


class Desk:
    """A method and the texts that it decodes."""

    def __init__(self, plan: Any):
        """plan: of either loop."""
        self.plan, draft = plan, getattr(plan, "draft", None)
        self.fills = plan.model.config.attends != "causal"  # canvases, whose rounds are their own
        self.replaces = self.fills or plan.search is not None  # it replaces the loop that reads from left to right
        self.joins = not self.replaces and not any(hasattr(draft, verb) for verb in OWN_ROUNDS)
        self.reads = getattr(draft, "read", None)  # what it learns from prompts, so that none of one may be left out
        self.ready: list[Job] = []  # that decode in this turn, unless the schedule has them wait
        self.slots = 1  # most rows of a tree
        self.gone = 0

    def draft(self) -> None:
        """A tree for everybody that is ready: a draft is asked for all at once, and once a turn."""
        jobs = [job for job in self.ready if job.guesses]
        try:
            trees = propose(self.plan, [job.sequence for job in jobs], self.slots)
        except Exception as problem:
            raise BrokenMethod(self, problem) from problem
        for job, tree in zip(jobs, trees, strict=True):
            job.tree = tree

    def left(self, job: Job, idle: bool) -> None:
        """A text left before its end, which its draft was never told."""
        if self.fills:
            self.plan.drop(job.sequence)
            return
        self.gone += 1
        method = self.plan.search or self.plan.draft
        if (idle or self.gone >= STALE) and hasattr(method, "start"):
            try:
                method.start([])
            except Exception as problem:  # those who wait must hear of their ends all the same; the next who leaves tries again
                print(f"lithe: {self.plan.name} could not start anew: {problem}", file=sys.stderr)
                return
            self.gone = 0


class Job:
    """One choice of a request."""

    def __init__(self, ticket: Ticket, choice: int, sequence: Sequence, desk: Desk):
        self.ticket, self.choice, self.sequence, self.desk = ticket, choice, sequence, desk
        self.request = ticket.request
        self.arrived, self.usage = perf_counter(), Usage(prompt=sequence.prompt)
        self.began: float | None = None  # when it first ran
        self.table = Table()
        self.tree: Tree | None = None
        self.followers: list[Job] = []  # choices that fork from this one once its prompt is read
        self.states: list[tuple[int, dict[int | str, Tensor]]] = []  # rows of its prompt, until its draft may read all
        echoes = self.request.echo and self.request.logprobs is not None
        self.prompt_logprobs = [TokenLogprob(sequence.ids[0], None)] if echoes else None  # until they are published

    @property
    def echoes(self) -> bool:
        return self.prompt_logprobs is not None

    @property
    def whole(self) -> bool:
        """Whether every token of its prompt must be read for itself."""
        return self.desk.reads is not None or self.echoes

    @property
    def key(self) -> Hashable:
        """What its keys and values were made with, beside its tokens."""
        choice = self.desk.plan.model.adapters
        return choice.default if choice is not None and self.sequence.adapter is None else self.sequence.adapter

    @property
    def length(self) -> int:
        return self.table.length

    @property
    def left(self) -> int:
        """Tokens to read before it decodes. Without a draft the last one is read with them, and gives the first token."""
        missing = len(self.sequence.ids) - self.table.length
        return 0 if missing == 1 else missing - self.guesses

    @property
    def guesses(self) -> bool:
        """Whether its rounds begin with a tree: of its draft, or of what its constraint forces."""
        return self.desk.plan.draft is not None or self.sequence.constraint is not None

    @property
    def rows(self) -> int:
        if not self.guesses:
            return 1
        if self.tree is None:
            self.desk.draft()
        assert self.tree is not None
        return len(self.tree)

    @property
    def seats(self) -> int:
        return 1 + len(self.followers)

    @property
    def order(self) -> tuple:
        return -self.request.priority, self.ticket.number, self.choice

    def read_states(self) -> None:
        """Tell the draft of the whole prompt: chunks would be forgotten while others draft."""
        if self.desk.reads is not None and self.states and self.states[0][0] == 0:
            names = self.states[0][1]
            taps = {name: torch.cat([part[name] for _, part in self.states])[None] for name in names}
            self.desk.reads([self.sequence], [0], [sum(len(next(iter(part.values()))) for _, part in self.states)], taps)
        self.states = []

    def publish(self, done: Step, logprobs: list[TokenLogprob] | None) -> None:
        """Count a round, and tell the ticket of it."""
        usage, finished = self.usage, self.sequence.finished
        usage.passes, usage.rows = usage.passes + 1, usage.rows + done.nodes
        usage.generated += len(done.tokens)
        if not self.desk.fills:
            usage.drafted, usage.accepted = usage.drafted + done.nodes - 1, usage.accepted + len(done.tokens) - 1
        if self.request.prediction is not None:
            usage.accepted_prediction, usage.rejected_prediction = usage.accepted, usage.drafted - usage.accepted
        self.ticket.publish(Event(self.choice, done.text, done.tokens, done.sources, logprobs, finished,
                                  usage if finished else None, self.prompt_logprobs))
        self.prompt_logprobs = None

    def end(self, why: str, error: str | None = None) -> None:
        """Tell the ticket that nothing more will come."""
        self.ticket.publish(Event(self.choice, finished=why, usage=self.usage, error=error))


def logprobs(rows_NV: Tensor, tokens: Seq[int], top: int) -> list[TokenLogprob]:
    """The model's own log probabilities of tokens, each by the row before it, and of the `top` likeliest there."""
    law_NV = rows_NV.float().log_softmax(-1)
    best = law_NV.topk(min(top, law_NV.shape[-1])) if top else None
    found = []
    for n, token in enumerate(tokens):
        pairs = zip(best.indices[n].tolist(), best.values[n].tolist(), strict=True) if best is not None else ()
        found.append(TokenLogprob(token, float(law_NV[n, token]), tuple(pairs)))
    return found
