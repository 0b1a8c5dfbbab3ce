"""The target's own states of what is committed, for drafts that start from them. Axes: B sequences, T rows, C width."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Seq

import torch
from torch import Tensor

from lithe.model.cache import PlainCache
from lithe.model.config import Config
from lithe.model.decoder import NONE, Decoder
from lithe.model.mask import CAUSAL, Mask, Tree as TreeMask
from lithe.sampling.sequence import Sequence

CHUNK = 512  # rows a pass of a body reads at once
SLACK = 64  # slots for rows that are never committed; more are added where they are needed
TAP = "final"


class States:
    """For each sequence, states [T, C] of consecutive committed tokens, as passes over the target gave them."""

    def __init__(self, dtype: torch.dtype, *taps: int | str) -> None:
        """dtype: of the weights that will read them. taps: which states, side by side; the final ones where none is named."""
        self.dtype, self.taps = dtype, taps or (TAP,)
        self.held: dict[int, tuple[int, Tensor]] = {}  # by the sequence's number: place of the first, states

    def read(self, sequences: Seq[Sequence], starts: Seq[int], counts: Seq[int], taps: dict) -> None:
        """Rows of a prompt's pass."""
        for b, (sequence, start, count) in enumerate(zip(sequences, starts, counts, strict=True)):
            if count:
                copied = [taps[tap][b, :count].to(self.dtype, copy=True) for tap in self.taps]  # else the pass stays in memory
                self._add(sequence, start, torch.cat(copied, -1))

    def observe(self, rounds: Seq) -> None:
        """Rows of what a walk accepted: the root's and the path's, the true ones in place of any that were guessed."""
        for r in rounds:
            if not r.sequence.finished:
                rows = [0, *r.walk.path]
                self._add(r.sequence, len(r.sequence.ids) - 1 - len(rows),
                          torch.cat([r.taps[tap][rows].to(self.dtype) for tap in self.taps], -1))

    def since(self, sequence: Sequence, start: int) -> Tensor | None:
        """States from that place up to the token before the last, which no pass has read; None unless all were seen."""
        first, states = self.held.get(sequence.number, (0, None))
        if states is None or start < first or first + len(states) != len(sequence.ids) - 1 or start >= first + len(states):
            return None
        return states[start - first :]

    def last(self, sequence: Sequence) -> Tensor | None:
        """The state [C] of the token before the last: of the last one that was read."""
        found = self.since(sequence, len(sequence.ids) - 2)
        return None if found is None else found[-1]

    def latest(self, sequences: Seq[Sequence], room: Seq[int]) -> tuple[list[int], Tensor | None]:
        """The places in the batch of what can be drafted for, and the last state [B, C] of each; earlier ones are forgotten."""
        self.keep(sequences, [len(s.ids) - 2 for s in sequences])
        known = {b: h_C for b, s in enumerate(sequences) if room[b] > 0 and (h_C := self.last(s)) is not None}
        return list(known), torch.stack(list(known.values())) if known else None

    def keep(self, sequences: Seq[Sequence], froms: Seq[int]) -> None:
        """Forget other sequences, and states before the given places."""
        kept = {}
        for sequence, start in zip(sequences, froms, strict=True):
            if sequence.number in self.held:
                first, states = self.held[sequence.number]
                kept[sequence.number] = (max(first, start), states[max(0, start - first) :].clone())
        self.held = kept

    def _add(self, sequence: Sequence, start: int, states: Tensor) -> None:
        first, before = self.held.get(sequence.number, (start, states[:0]))
        joins = first + len(before) == start
        self.held[sequence.number] = (first, torch.cat((before, states))) if joins else (start, states)


class Trail:
    """A body, a decoder of few layers, whose cache holds a row for each committed token it has read."""

    def __init__(self, body: Decoder):
        self.body = body
        self.cache = PlainCache.like(body, batch=0, capacity=SLACK)
        self.held: list[Sequence] = []

    def sync(self, sequences: Seq[Sequence]) -> None:
        """Give every sequence its lane, in this order; forget the others."""
        place = {id(held): lane for lane, held in enumerate(self.held)}
        self.cache.keep([place.get(id(sequence), -1) for sequence in sequences])
        self.held = list(sequences)

    @property
    def lengths(self) -> list[int]:
        return self.cache.lengths

    def advance(self, rows: Seq[Tensor]) -> Tensor:
        """Read rows [T, C] of each sequence and keep them; returns the body's state [B, C] after the last, zeros after none."""
        last: list[Tensor] = [row.new_zeros(row.shape[-1]) for row in rows]
        for at in range(0, max(map(len, rows)), CHUNK):
            pieces = [row[at : at + CHUNK] for row in rows]
            out_BTC = self.look(pieces)
            last = [out_BTC[b, len(piece) - 1] if len(piece) else last[b] for b, piece in enumerate(pieces)]
            self.cache.commit([len(piece) for piece in pieces])
        return torch.stack(last)

    def look(self, rows: Seq[Tensor], parents: Seq[list[int]] | None = None, *, seen_BTT: Tensor | None = None) -> Tensor:
        """The body's states [B, T, C] of rows that nothing keeps; with parents, trees of them.

        seen_BTT: who sees whom among them, where that is another matter.
        """
        width = max(map(len, rows))
        self._room(width)
        x_BTC = torch.stack([torch.cat((row, row.new_zeros(width - len(row), row.shape[-1]))) for row in rows])
        steps = [list(range(width))] * len(rows) if parents is None else [_depths(p) + [0] * (width - len(p)) for p in parents]
        limit = self.body.config.context - 1  # padding only
        pos_BT = torch.tensor([[min(n + step, limit) for step in row] for n, row in zip(self.lengths, steps, strict=True)],
                              device=x_BTC.device)
        mask: Mask = CAUSAL if parents is None else TreeMask(list(parents))
        mask = mask if seen_BTT is None else seen_BTT.to(x_BTC.device)
        return self.body(embeds=x_BTC, pos_BT=pos_BT, mask=mask, cache=self.cache, logits=NONE).hidden

    def _room(self, rows: int) -> None:
        wanted = max(self.lengths) + rows
        if wanted > self.cache.capacity:
            self.cache.grow(max(2 * self.cache.capacity, wanted + SLACK))


class Follower:
    """States and a trail in step: the body reads what was committed since the last round and says how it stands now."""

    def __init__(self, body: Decoder, rows: Callable[[Sequence, int, Tensor], Tensor], *taps: int | str):
        """rows(sequence, start, states) are the body's rows [T, C] for the true states of the tokens from place `start` on."""
        self.states, self.trail, self.rows = States(body.dtype, *taps), Trail(body), rows
        self.read, self.observe = self.states.read, self.states.observe

    def ready(self, sequence: Sequence) -> bool:
        """Whether it has seen all of the sequence that the body has not read."""
        lengths = {id(held): n for held, n in zip(self.trail.held, self.trail.lengths, strict=True)}
        return self.states.since(sequence, lengths.get(id(sequence), 0)) is not None

    def follow(self, sequences: Seq[Sequence], room: Seq[int]) -> tuple[list[int], Tensor | None]:
        """The places in the batch of what can be drafted for, and the body's state [B, C] after the last row of each."""
        live = [b for b, s in enumerate(sequences) if room[b] > 0 and self.states.last(s) is not None]
        self.trail.sync([sequences[b] for b in live])
        seen = [self.states.since(sequences[b], n) for b, n in zip(live, self.trail.lengths, strict=True)]
        live = [b for b, states in zip(live, seen, strict=True) if states is not None]
        found = [states for states in seen if states is not None]
        batch = [sequences[b] for b in live]
        self.trail.sync(batch)
        if not live:
            return [], None
        rows = [self.rows(*each) for each in zip(batch, self.trail.lengths, found, strict=True)]
        out_BC = self.trail.advance(rows)
        self.states.keep(batch, self.trail.lengths)
        return live, out_BC


def _depths(parents: list[int]) -> list[int]:
    depths: list[int] = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return depths


def body(model: Decoder, layers: int = 1, *, more: int = 0, ffn: bool = True, passes: int = 1) -> Decoder:
    """A decoder of so many of the target's kind of layers, fresh; it is given rows, and what it returns has no norm.

    more: columns its rows have beside those of the target's states. ffn: with FFNs, or attention alone. passes: how many
    times the rows of the target's context one pass may hold.
    """
    config, first = model.config, model.config.layer(0)
    inner = (first.ffn or 4 * config.width) if ffn else 0
    shape = Config(vocab=1, width=config.width + more, layers=layers, heads=first.heads or 1, kv_heads=first.kv_heads or 1,
                   head_dim=first.head_dim or config.head_dim, ffn=inner, context=passes * config.context, tied=True,
                   activation=config.activation, gated=config.gated, norm_eps=config.norm_eps, rope=config.rope)
    made = Decoder(shape).init(int(torch.randint(2**31, ())))
    for name in ("embed_tokens", "norm"):  # the two ends are not used
        getattr(made, name).requires_grad_(False)
    return made
