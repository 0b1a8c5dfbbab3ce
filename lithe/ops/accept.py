"""Acceptance rules: which drafted child to follow, so that what is emitted has exactly the target's law.

Axes: N tree nodes, V vocabulary. p_V is the target's law at a node; q_V the law its children were drawn from, as it was when
they were drawn. A rule reads (p_V, tokens of the children in draw order, q_V, dice) and returns (rank of the child followed or
None, token emitted). Rules decide by `dice` alone: one that takes every branch and adds up their weights proves them exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, expm1, isfinite, log1p
from typing import Protocol

import torch
from torch import Tensor

from lithe.ops.tree import Tree, Walk


class Chance(Protocol):
    """All that a rule may know of luck."""

    def toss(self, chance: float) -> bool:
        """True with this probability; a chance above one is certain."""

    def draw(self, p_V: Tensor) -> int:
        """A token with probability proportional to p_V."""


class Dice:
    """Chance from a generator: one uniform number a decision."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def gumbel(self, size: int) -> Tensor:
        """Standard Gumbel noise [size]: the largest of log p + noise is a draw from p, the k largest are k without repeats."""
        uniform = torch.rand(size, generator=self.generator, dtype=torch.float64).clamp_(min=2**-60)
        return -(-uniform.log()).log()

    def toss(self, chance: float) -> bool:
        return self.uniform() < chance

    def draw(self, p_V: Tensor) -> int:
        """The first token at which the cumulated law exceeds a uniform number: never one of probability zero."""
        sum_V = p_V.double().cumsum(-1)
        at = int(torch.searchsorted(sum_V, self.uniform() * sum_V[-1], right=True))
        return at if at < len(p_V) else int(p_V.nonzero()[-1])  # the product was rounded up to the whole


EMPTY = "a node's scores are not numbers, or leave no token to choose"
Decision = tuple[int | None, int]
Rule = Callable[[Tensor, Sequence[int], Tensor | None, Chance], Decision]


def walk(tree: Tree, scores_NV: Tensor, rule: Rule, dice: torch.Generator | Chance) -> Walk:
    """Apply a rule node by node. scores_NV: warped logits of every node, -inf where cut off."""
    chance = chance_of(dice)
    return descend(tree, lambda node, tokens: rule(law(scores_NV[node]), tokens, tree.laws.get(node), chance))


def chance_of(dice: torch.Generator | Chance) -> Chance:
    """A bare generator as dice."""
    return Dice(dice) if isinstance(dice, torch.Generator) else dice


def greedy(tree: Tree, scores_NV: Tensor) -> Walk:
    """Follow the largest score of every node, the lowest id among equals. Raises ValueError where none is left."""
    return likeliest(tree, best_of(scores_NV))


def likeliest(tree: Tree, best: Callable[[int], int]) -> Walk:
    """The same by what is best at a node, -1 being none: asked of visited nodes alone, as others may have nothing left."""
    path: list[int] = []
    node: int | None = 0
    while node is not None:
        if (token := best(node)) < 0:
            raise ValueError(EMPTY)
        if (node := tree.child(node, token)) is not None:
            path.append(node)
    return Walk(tuple(path), token)


def best_of(scores_NV: Tensor) -> Callable[[int], int]:
    """For a row the lowest id of its largest score, -1 where that is infinite or none: row by row where that is cheap."""
    if scores_NV.is_cpu and scores_NV.dtype in (torch.float32, torch.float64):
        table = scores_NV.numpy(force=scores_NV.requires_grad)  # whose argmax is some ten times as quick as a tensor's
        return lambda node: best if isfinite(table[node, best := int(table[node].argmax())]) else -1
    top_N = scores_NV.max(-1)
    return torch.where(top_N.values.isfinite(), top_N.indices, -1).tolist().__getitem__


def descend(tree: Tree, decide: Callable[[int, list[int]], Decision]) -> Walk:
    """From the root to the child that `decide` follows, until it follows none."""
    node = 0
    path: list[int] = []
    while True:
        children = tree.children(node)
        rank, token = decide(node, [tree.tokens[child] for child in children])
        if rank is None:
            return Walk(tuple(path), token)
        node = children[rank]
        path.append(node)


def match(tokens: Sequence[int], token: int) -> Decision:
    """Follow the first child that holds this token, which is emitted either way."""
    return (tokens.index(token) if token in tokens else None), token


def follow(p_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance) -> Decision:
    """Draw from p and follow the child that holds the token. However the children came to be, they cannot bias it."""
    return match(tokens, dice.draw(p_V))


def rejection(p_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance) -> Decision:
    """One child x ~ q: follow it with probability min(1, p(x)/q(x)), else draw from the normalised (p - q)+."""
    if len(tokens) > 1:
        raise ValueError(f"a chain has one child a node, not {len(tokens)}")
    return with_replacement(p_V, tokens, q_V, dice)


def with_replacement(p_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance) -> Decision:
    """Children drawn independently from q, tested in turn; the urn they came from is never changed."""
    return _in_turn(p_V, tokens, q_V, dice, lambda urn_V, token: urn_V)


def without_replacement(p_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance) -> Decision:
    """Children drawn from q without replacement, tested in turn; the urn loses each, as it did when they were drawn."""
    return _in_turn(p_V, tokens, q_V, dice, without)


def _in_turn(p_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance,
             after: Callable[[Tensor, int], Tensor]) -> Decision:
    """Test each child against what those before it left of p. `after` is the urn once a token has been drawn from it."""
    if not tokens:
        return None, dice.draw(p_V)
    urn_V = drafted(p_V, q_V)
    for rank, token in enumerate(tokens):
        if dice.toss(ratio(p_V, urn_V, token)):
            return rank, token
        p_V, urn_V = residual(p_V, urn_V), after(urn_V, token)
    return None, dice.draw(p_V)


def k_seq(p_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance) -> Decision:
    """Children drawn independently from q, each followed with probability min(1, p/(rho q)); the rest is what they left.

    SpecTr (Sun et al., 2023), algorithm 3: rho spreads p over the k trials, so that each has the same chance of success.
    """
    if not tokens:
        return None, dice.draw(p_V)
    q_V = drafted(p_V, q_V)
    rho = spread(p_V, q_V, len(tokens))
    for rank, token in enumerate(tokens):
        if dice.toss(ratio(p_V, q_V, token) / rho):
            return rank, token
    shared_V = torch.minimum(q_V, p_V / rho)
    beta = shared_V.sum().item()
    given = success(beta, len(tokens)) / beta if beta > 0 else 0.0  # what all k trials gave, over what one gives
    return None, dice.draw(residual(p_V, shared_V * given))


def spread(p_V: Tensor, q_V: Tensor, k: int) -> float:
    """The least rho in [1, k] at which k trials never give more of a token than p has: 1 - (1 - beta)^k <= rho beta."""
    low, high = 1.0, float(k)
    fits = lambda rho: success(beta := torch.minimum(q_V, p_V / rho).sum().item(), k) <= rho * beta
    if fits(low):
        return low
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def success(beta: float, k: int) -> float:
    """The chance that one of k trials succeeds."""
    return -expm1(k * log1p(-beta)) if beta < 1 else 1.0


def typical(tree: Tree, scores_NV: Tensor, *, floor: float, share: float) -> list[int]:
    """The longest path of nodes that are typical, p(x) > min(floor, share exp(-H(p))), the first among equals.

    Medusa (Cai et al., 2024), section 2.3.1. It looks at no law of the draft's, and changes the law of what comes out.
    """
    best, depths, fine = 0, tree.depths, {0}
    for node, parent in enumerate(tree.parents):
        if parent in fine:
            p_V = law(scores_NV[parent])
            entropy = -torch.special.xlogy(p_V, p_V).sum().item()
            if p_V[tree.tokens[node]].item() > min(floor, share * exp(-entropy)):
                fine.add(node)
                best = node if depths[node] > depths[best] else best
    return tree.path(best)


def relaxed(tree: Tree, scores_NV: Tensor, *, beta: int, tau: float) -> Walk:
    """Follow the best child that is among the beta largest scores and at most tau below the largest. Not lossless."""

    def decide(node: int, tokens: list[int]) -> Decision:
        best = int(scores_NV[node].argmax())
        top = scores_NV[node, best].item()
        if not isfinite(top):
            raise ValueError(EMPTY)
        scores = scores_NV[node, tokens].tolist() if tokens else []
        for rank in sorted(range(len(tokens)), key=lambda rank: (-scores[rank], tokens[rank])):
            better = int((scores_NV[node] > scores[rank]).sum() + (scores_NV[node, : tokens[rank]] == scores[rank]).sum())
            if better < beta and top - scores[rank] <= tau:  # among equals the lowest id comes first
                return rank, tokens[rank]
        return None, best

    return descend(tree, decide)


def walk_scores(tree: Tree, scores_NV: Tensor, rule: Callable[..., Decision], dice: torch.Generator | Chance) -> Walk:
    """As `walk`, for rules that change the scores [V] of a node before they make a law of them."""
    chance = Dice(dice) if isinstance(dice, torch.Generator) else dice
    return descend(tree, lambda node, tokens: rule(scores_NV[node], tokens, tree.laws.get(node), chance))


def shifted(scores_V: Tensor, q_V: Tensor, *, eta: float, alpha: float) -> Tensor:
    """Scores [V] moved towards the draft's law: eta (p - q) less where q is at least alpha of its largest (RAPID)."""
    p_V = law(scores_V)
    return scores_V.double() - eta * torch.where(q_V >= alpha * q_V.max(), p_V - q_V, 0.0)


def shifted_rejection(scores_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance, *, eta: float,
                      alpha: float) -> Decision:
    """Test a chain's token against the shifted law; what is rejected is replaced from what either law lacks. Not lossless."""
    p_V = law(scores_V)
    if not tokens:
        return None, dice.draw(p_V)
    q_V = drafted(p_V, q_V)
    moved_V = law(shifted(scores_V, q_V, eta=eta, alpha=alpha))
    if dice.toss(ratio(moved_V, q_V, tokens[0])):
        return 0, tokens[0]
    return None, dice.draw(residual(p_V, torch.minimum(q_V, moved_V)))


def shifted_greedy(scores_V: Tensor, tokens: Sequence[int], q_V: Tensor | None, dice: Chance, *, eta: float,
                   alpha: float) -> Decision:
    """Follow a chain's token where its shifted score is largest, else emit the likeliest. Not lossless."""
    best = int(scores_V.argmax())
    if not isfinite(scores_V[best].item()):
        raise ValueError(EMPTY)
    if tokens and int(shifted(scores_V, drafted(scores_V.double(), q_V), eta=eta, alpha=alpha).argmax()) == tokens[0]:
        return 0, tokens[0]
    return None, best


def law(scores_V: Tensor) -> Tensor:
    """Probabilities [V] in float64. Raises ValueError where no token is left."""
    p_V = scores_V.double().softmax(-1)
    if p_V[0].isnan():  # one nan, or nothing but -inf, makes every entry nan
        raise ValueError(EMPTY)
    return p_V


def drafted(p_V: Tensor, q_V: Tensor | None) -> Tensor:
    """The draft's law beside p: same device, float64, sum one, zero where its vocabulary ends. Raises ValueError for no law."""
    if q_V is None:
        raise ValueError("children were drafted without a law: they are deterministic, and need a rule that takes them so")
    if len(q_V) > len(p_V):
        raise ValueError(f"the draft's law has {len(q_V)} tokens, the target's {len(p_V)}: cut it before drawing from it")
    q_V = q_V.to(p_V)
    total = q_V.sum()
    if not abs(total - 1) < 1e-3:
        raise ValueError(f"the draft's law sums to {total:.6g}, not to one")
    return torch.nn.functional.pad(q_V / total, (0, len(p_V) - len(q_V)))


def ratio(p_V: Tensor, q_V: Tensor, token: int) -> float:
    """p/q of a drafted token. Raises ValueError where q says that it cannot have been drawn."""
    p, q = p_V[token].item(), q_V[token].item()
    if not q > 0:
        raise ValueError(f"token {token} was drafted, but its law gives it no chance, or none to be drawn again")
    return p / q


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """The normalised (p - q)+: what p still owes once q's tokens had their turn. All zero only by rounding: then p."""
    left_V = (p_V - q_V).clamp_(min=0)
    total = left_V.sum()
    return left_V / total if total > 0 else p_V


def without(q_V: Tensor, token: int) -> Tensor:
    """q once `token` has been taken out of the urn, normalised; all zero when the urn is empty."""
    q_V = q_V.clone()
    q_V[token] = 0
    total = q_V.sum()
    return q_V / total if total > 0 else q_V
