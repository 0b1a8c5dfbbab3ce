"""Reward whole fillings, and credit each token in the very canvas in which it was decided: consistent trajectories."""

from dataclasses import dataclass, replace

import torch

from lithe.card import Card, knob
from lithe.diffuse.learn import logits

CARD = Card(paper="Taming Masked Diffusion Language Models via Consistency Trajectory Reinforcement Learning with Fewer "
                  "Decoding Step", row=133, trains=True)


@dataclass(frozen=True, kw_only=True)
class Knobs:
    rate: float = knob(1e-4, "peak learning rate", low=0)
    policy: str = knob("", "how canvases are filled, as a spec with ; for its commas; empty: one token a step")
    group: int = knob(8, "fillings of a prompt, whose mean reward is the zero", low=2)
    prompts: int = knob(4, "prompts of a step", low=1)
    heat: float = knob(1.0, "temperature of the fillings", low=0.01)
    clip: float = knob(0.2, "how far a token's chance may move before it counts no more", low=0)
    anchor: float = knob(0.04, "weight of the distance to the first model (beta)", low=0)
    inner: int = knob(2, "updates from one round of fillings", low=1)
    trace: bool = knob(True, "credit tokens where they were decided; off: all in one pass over an empty canvas (diffu-GRPO)")


class Method:
    def __init__(self, knobs, model):
        self.knobs, self.first, self.held = knobs, model, None

    def begin(self, room, student):
        """Fillings are the student's own; the first model is what it stays near to."""
        self.room, self.student, self.reward = room, replace(room, model=student), 0.0

    def batch(self, step, ending=False):
        turn, again = divmod(step, self.knobs.inner)
        if self.held is None or again == 0 or self.held[0] != turn:
            self.held = (turn, self._rolled(turn))
        return self.held[1]

    @torch.no_grad()
    def _rolled(self, turn):
        """Fill, judge, and lay out every state of every trace: the rows in which tokens were decided, and which ones."""
        knobs, room = self.knobs, self.room
        asked = [e for e in room.chosen(turn, knobs.prompts) for _ in range(knobs.group)]
        self.student.model.eval()
        policy = filter(None, [knobs.policy.replace(";", ",")])
        runs = self.student.filled(asked, *policy, temperature=knobs.heat, seed=room.lesson.seed + 100_003 * turn)
        self.student.model.train()
        reward_PG = torch.tensor([float(e.right(room.said(e, r.canvas.ids_T))) for e, r in zip(asked, runs, strict=True)])
        self.reward = float(reward_PG.mean())
        reward_PG = reward_PG.view(-1, knobs.group)
        gain_P = ((reward_PG - reward_PG.mean(1, keepdim=True)) / (reward_PG.std(1, keepdim=True) + 1e-4)).flatten()
        return states([r.canvas for r in runs], gain_P, room.mask, room.end, knobs.trace)

    def loss(self, model, batch):
        """The clipped surrogate and the distance to the first model, a mean over steps of means over their tokens."""
        knobs, decided_BT = self.knobs, batch["decided_BT"]
        now_N = taken(model, batch, knobs.heat)
        with torch.no_grad():
            first_N = taken(self.first, batch, knobs.heat)
        row_N = decided_BT.nonzero()[:, 0]
        gain_N, was_N = batch["gain_B"][row_N], batch["was_BT"][decided_BT] if knobs.trace else now_N.detach()
        ratio_N = (now_N - was_N).exp()
        surrogate_N = torch.minimum(ratio_N * gain_N, ratio_N.clamp(1 - knobs.clip, 1 + knobs.clip) * gain_N)
        apart_N = (first_N - now_N).exp() - (first_N - now_N) - 1
        each_N = (-surrogate_N + knobs.anchor * apart_N) / decided_BT.sum(1)[row_N]
        return each_N.sum(), torch.tensor(len(decided_BT))


def states(canvases, gain_P, mask, end, trace=True):
    """Rows of all canvases: before each round what was there, and which tokens that round decided; one row without a trace."""
    most, rows = max(c.end for c in canvases), []
    for canvas, gain in zip(canvases, gain_P.tolist(), strict=True):
        fill = lambda values, with_, n=most - canvas.end: torch.cat((values, torch.full((n,), with_, dtype=values.dtype)))
        when_T, ids_T = fill(canvas.when_T, 0), fill(canvas.ids_T, end)
        sure_T = fill(canvas.sure_T.float(), 1.0)
        for turn in range(1, int(when_T.max()) + 1) if trace else (1,):
            decided_T = (when_T == turn) if trace else (when_T > 0)
            before_T = torch.where(when_T >= turn, mask, ids_T)
            rows.append((before_T, ids_T, decided_T, sure_T.clamp_min(1e-30).log(), torch.tensor(gain)))
    before, ids, decided, was, gain_B = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"ids_BT": before, "clean_BT": ids, "decided_BT": decided, "was_BT": was, "gain_B": gain_B}


def taken(model, batch, heat=1.0):
    """Log-probabilities of the decided tokens, each in the canvas of its row."""
    scores_BTV = logits(model, batch["ids_BT"], batch["clean_BT"]) / heat
    log_BT = scores_BTV.log_softmax(-1).gather(2, batch["clean_BT"].unsqueeze(-1)).squeeze(-1)
    return log_BT[batch["decided_BT"]]
