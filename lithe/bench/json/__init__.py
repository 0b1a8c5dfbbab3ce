"""JSONSchemaBench (row 99): which schemas are enforced, whether what is written is valid, and what that costs.

`_sets` reads schemas with instances known to be valid or not, `_judge` says what the standard makes of a text, `_verdicts`
asks a constraint about them and times it, `_suite` lets a model write under it, `_rows` sums up.
"""

SUITE = "json"
ROW = 99
