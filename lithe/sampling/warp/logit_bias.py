"""Make tokens of your choice more or less likely.

The rule of OpenAI's API: an amount is added to the logit of each token named. `5=-100+7=2.5` takes 100 from token 5 and
adds 2.5 to token 7; -inf forbids a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.errors import UsageError
from lithe.ops import truncate

CARD = Card(paper="OpenAI API reference: logit bias")
MAIN = "logit_bias"
OFF = ""  # changes nothing


@dataclass(frozen=True, kw_only=True)
class Knobs:
    logit_bias: str = knob("", "token=amount, several joined by +, as in 5=-100+7=2.5")


class Method:
    stage = 0
    reads_context = False

    def __init__(self, knobs: Knobs):
        self.amounts = _read(knobs.logit_bias)

    def __call__(self, logits_NV, contexts):
        if unknown := [token for token in self.amounts if token >= logits_NV.shape[-1]]:
            raise UsageError(f"logit_bias names token {unknown[0]}, but the vocabulary has {logits_NV.shape[-1]}")
        return truncate.bias(logits_NV, self.amounts)


def _read(text: str) -> dict[int, float]:
    """Amounts by token. Raises UsageError for what is not token=amount, is said twice, or would make a token certain."""
    amounts: dict[int, float] = {}
    for item in text.split("+") if text else ():
        token, _, amount = item.partition("=")
        try:
            key, value = int(token), float(amount)
        except ValueError:
            raise UsageError(f"logit_bias={text!r}: {item!r} is not token=amount") from None
        if key < 0 or key in amounts or not value < float("inf"):
            raise UsageError(f"logit_bias={text!r}: {item!r} names a negative token, one named before, or no amount to add")
        amounts[key] = value
    return amounts
