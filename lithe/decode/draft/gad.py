"""A small model fills a whole block of masked places at once, and the target checks it word for word.

Generalized aggressive decoding (Ge et al., 2022, section 3; Xia et al., 2023). The drafter reads the text causally and k masked
places behind it, which see the text and each other, both ways: one pass of it guesses k tokens. It learns from what the target
itself writes: random blocks are masked, the more of one it guesses wrong the more of its tokens are shown (glancing, Qian et
al., 2021; the share falls from `glance` to `least`), and what stays masked is its lesson. With the same paper's rule that
accepts what is nearly the target's choice (GAD++) the output changes.

A decoder-only form of the paper's encoder and decoder: it looks through the target's embeddings and shares its output matrix.
Axes: B rows, T tokens, P points of a text, G masked rows beside it, C width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lithe.card import Card, knob
from lithe.decode import beside
from lithe.decode.heads import Ends
from lithe.decode.trail import CHUNK, Trail, body
from lithe.model.modules import RMSNorm
from lithe.ops.tree import Tree
from lithe.train import fitted

CARD = Card(
    paper="Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
    row=55,
    promises=("same_tokens", "same_law"),
    emits=("det",),
    trains=True,
)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    heads: str = knob("", "folder of weights that lithe fit made for this target; fresh: untrained ones")
    tokens: int = knob(25, "masked places of a block, in drafting and in a fit", low=1, high=256)
    layers: int = knob(2, "layers of the drafter", low=1, high=16)
    glance: float = knob(0.5, "tokens of a block that a fit shows, as a share of the wrong ones, at first", low=0.0, high=1.0)
    least: float = knob(0.3, "and in the end", low=0.0, high=1.0)
    anneal: int = knob(300_000, "steps of a fit between the two", low=1)
    smoothing: float = knob(0.1, "share of a lesson's law that is spread over all tokens", low=0.0, high=0.9)
    points: int = knob(8, "blocks of a row that a step of a fit learns from", low=1, high=1024)
    rate: float = knob(5e-4, "peak learning rate of a fit", low=0.0)


class Filler(nn.Module):
    SHAPED_BY = ("layers",)
    signals = ()
    steps: torch.Tensor

    def __init__(self, knobs: Knobs, model):
        super().__init__()
        self.knobs, self.ends, self.body = knobs, Ends(model), body(model, knobs.layers)
        some = torch.randint(model.config.vocab, (64,))
        self.mask = nn.Parameter(model.embed(some.to(model.device)).detach().cpu().float().mean(0))
        self.norm = RMSNorm(model.config.width, model.config.norm_eps, model.config.norm_offset)
        self.norm.load_state_dict({name: value.detach().cpu() for name, value in model.norm.state_dict().items()})
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of the fit, so that it can go on where it stopped

    def rows(self, ids):
        """The body's rows [..., C] of known tokens."""
        return self.ends.embed(ids, self.mask)

    def logits(self, said):
        return self.ends.logits(self.norm(said))

    def blocks(self, ids_BT):
        """The text as it was read, and of the places [B, G] of blocks behind random points of it the tokens and positions."""
        (B, T), most = ids_BT.shape, min(self.knobs.tokens, ids_BT.shape[1] - 1)
        points_P = beside.points(T, most, self.knobs.points, self.training)
        pos_G, seen_GS = beside.reached(points_P, most, T, both=True)
        text = beside.Beside(self.body, T, B)
        text.seen_GS = torch.ones(T, T, dtype=torch.bool, device=ids_BT.device).tril()
        self.body(embeds=self.rows(ids_BT), cache=text, logits="none")
        text.seen_GS = seen_GS.to(ids_BT.device)
        return text, ids_BT[:, pos_G], pos_G.to(ids_BT.device).expand(B, -1)

    def fill(self, text, pos_BG, rows_BGC):
        """Logits [B, G, V] of the places themselves."""
        said_BGC = self.body(embeds=rows_BGC, pos_BT=pos_BG, cache=text.fork(), logits="none").hidden
        return self.logits(said_BGC)

    def shown(self, text, pos_BG, true_BG):
        """Which places are shown: at random, the more of a block the more of it is guessed wrong."""
        with torch.no_grad():
            wrong_BG = self.fill(text, pos_BG, self.mask.expand(*pos_BG.shape, -1)).argmax(-1) != true_BG
        many = min(self.knobs.tokens, text.seen_GS.shape[0])
        share_BG = wrong_BG.unflatten(1, (-1, many)).float().mean(-1).repeat_interleave(many, 1)
        done = min(1.0, float(self.steps) / self.knobs.anneal)
        ratio = self.knobs.glance + done * (self.knobs.least - self.knobs.glance)
        return torch.rand(share_BG.shape, device=share_BG.device) < ratio * share_BG

    def guesses(self, batch):
        """For place i behind a point: logits and the token that stands there."""
        text, true_BG, pos_BG = self.blocks(batch["ids_BT"])
        many = min(self.knobs.tokens, batch["ids_BT"].shape[1] - 1)
        said = self.fill(text, pos_BG, self.mask.expand(*pos_BG.shape, -1)).unflatten(1, (-1, many))
        for i in range(min(many, fitted.MOST)):
            yield said[:, :, i], true_BG.unflatten(1, (-1, many))[:, :, i]

    def loss(self, batch):
        text, true_BG, pos_BG = self.blocks(batch["ids_BT"])
        shown_BG = self.shown(text, pos_BG, true_BG)
        self.steps += 1
        rows_BGC = torch.where(shown_BG[..., None], self.rows(true_BG), self.mask)
        said_BGV = self.fill(text, pos_BG, rows_BGC)[~shown_BG]
        smoothing = self.knobs.smoothing
        return F.cross_entropy(said_BGV, true_BG[~shown_BG], label_smoothing=smoothing, reduction="sum"), len(said_BGV)


class Method:
    build = Filler

    def __init__(self, knobs: Knobs, model):
        self.knobs, self.device = knobs, model.device
        self.net = fitted.load("gad", knobs, model, Filler).module
        self.trail = Trail(self.net.body)

    def propose(self, sequences, room):
        trees = [Tree.root(s.ids[-1]) for s in sequences]
        live = [b for b, most in enumerate(room) if most > 0]
        if live:
            many = [min(room[b], self.knobs.tokens) for b in live]
            for b, tokens in zip(live, self._fill([sequences[b] for b in live], many), strict=True):
                trees[b] = Tree.chain(sequences[b].ids[-1], tokens)
        return trees

    def observe(self, rounds):
        """The drafter reads what was committed when it drafts next."""

    def _fill(self, sequences, many: list[int]) -> list[list[int]]:
        """One pass over what was committed since the last, and so many masked places behind it."""
        self.trail.sync(sequences)
        if max(len(s.ids) - n for s, n in zip(sequences, self.trail.lengths, strict=True)) > CHUNK:
            self.trail.advance([self._rows(s.ids[n:-1]) for s, n in zip(sequences, self.trail.lengths, strict=True)])
        new = [s.ids[n:] for s, n in zip(sequences, self.trail.lengths, strict=True)]
        rows = [torch.cat((self._rows(ids), self.net.mask.expand(k, -1))) for ids, k in zip(new, many, strict=True)]
        said_BTC = self.trail.look(rows, seen_BTT=_seen(list(map(len, new)), many))
        self.trail.cache.commit(list(map(len, new)))
        ends = [(len(ids), len(ids) + k) for ids, k in zip(new, many, strict=True)]
        return [self.net.logits(said_BTC[b, first:last]).argmax(-1).tolist() for b, (first, last) in enumerate(ends)]

    def _rows(self, ids: list[int]):
        return self.net.rows(torch.tensor(ids, dtype=torch.long, device=self.device))


def _seen(known: list[int], masked: list[int]) -> torch.Tensor:
    """Who sees whom, boolean [B, T, T]: known tokens see those before them, the masked ones behind them each other too."""
    width = max(n + k for n, k in zip(known, masked, strict=True))
    seen_BTT = torch.ones(len(known), width, width, dtype=torch.bool).tril()
    for b, (n, k) in enumerate(zip(known, masked, strict=True)):
        seen_BTT[b, n : n + k, n : n + k] = True
    return seen_BTT
