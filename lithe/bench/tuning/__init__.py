"""Tuning methods beside tuning all weights: what each gains on text that the model does not know, and what it forgets.

`_plan` reads which methods, shifts and shares, `_text` makes examples of files, `_run` is one training, `_suite` runs what the
ledger does not hold yet, in an order that makes an interrupted matrix useful, `_rows` makes figures of records.
"""

FULL = "full"  # all weights: what the others are measured by
SUITE = "tuning"
